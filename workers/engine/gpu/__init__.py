"""Steps on GPUs: Triton kernels over pages, static buffers and graphs, sampling on the device, and steps run ahead."""
