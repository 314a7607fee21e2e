"""Bloom on one GPU: decode, prefill and a heavy-tailed workload, against transformers and the device's own limits.

The model has random weights that are made on the device, in the dtype that it computes in: no download, no checkpoint.
Needs torch and transformers; Redis, Celery and the rest of the farm only for ``--farm``.
"""
