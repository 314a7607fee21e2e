# The farm's images, a target each:
#
#   api          the REST API, and workers without an engine (farm worker --role system); no torch
#   worker       a worker on NVIDIA GPUs
#   worker-cpu   a worker on the CPU; tiny-bloom is in it
#   flower       Flower
#
#   docker build --target api --tag bloomfarm-api:0.1.0 .
#
# What they expect when they run, mirrors, digests: docs/deploy/docker.md.

ARG PYTHON_IMAGE=docker.io/library/python:3.12.13-slim-bookworm
# The CUDA version of torch's wheels. They bring cuBLAS, cuDNN and NCCL, so the image without these will do: it has the
# runtime, and refuses to start on a driver that is too old.
ARG CUDA_IMAGE=docker.io/nvidia/cuda:13.0.2-base-ubuntu24.04

# ---- all images: the user, the folders that it may write, where the farm is

FROM ${PYTHON_IMAGE} AS python
# An id that no account of a node has; useradd warns of one beyond SYS_UID_MAX.
RUN groupadd --system --gid 10001 farm \
 && useradd --system --key SYS_UID_MAX=10001 --uid 10001 --gid farm \
      --home-dir /cache --no-create-home --shell /usr/sbin/nologin farm \
 && install --directory --owner=farm --group=farm --mode=0700 /cache /run/farm /var/lib/farm
ENV PATH=/opt/farm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton
LABEL org.opencontainers.image.vendor="Bloomfarm" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

# ---- packages, then code: two layers, so that a change of code moves a megabyte

FROM python AS build
# pip's own names, for a mirror or PyTorch's builds for CPUs. Where there is a password in it: --secret id=pip.conf.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_CACHE_DIR=/var/cache/pip
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# A package with no code in it, for what it requires.
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /tools \
 && /tools/bin/pip install --constraint constraints.txt hatchling \
 && mkdir farm workers api && touch README.md LICENSE farm/none workers/none api/none \
 && /tools/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /requirements . \
 && python3 -m venv --without-pip /opt/farm

FROM build AS code
COPY . .
RUN /tools/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /dist . \
 && /tools/bin/pip --python /opt/farm/bin/python3 install --no-deps --no-index --prefix /code /dist/*.whl

# ---- api

FROM build AS api-packages
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /tools/bin/pip --python /opt/farm/bin/python3 install --constraint constraints.txt \
      "$(echo /requirements/*.whl)[api,system,s3]" \
 && /tools/bin/pip --python /opt/farm/bin/python3 uninstall --yes bloomfarm

FROM python AS api
LABEL org.opencontainers.image.title="bloomfarm-api" \
      org.opencontainers.image.description="Bloomfarm's REST API, and its workers without an engine"
COPY --from=api-packages /opt/farm /opt/farm
COPY --from=code /code /opt/farm
USER 10001:10001
WORKDIR /var/lib/farm
# A container's loopback is nobody's: what is published, and to whom, says who runs it. The API wants keys here.
ENV FARM_API__HOST=0.0.0.0
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python3", "-c", \
  "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('FARM_API__PORT', '8000') + '/readyz', timeout=4)"]
CMD ["farm", "api"]

# ---- flower

FROM build AS flower-packages
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /tools/bin/pip --python /opt/farm/bin/python3 install --constraint constraints.txt \
      "$(echo /requirements/*.whl)[flower]" \
 && /tools/bin/pip --python /opt/farm/bin/python3 uninstall --yes bloomfarm

FROM python AS flower
LABEL org.opencontainers.image.title="bloomfarm-flower" \
      org.opencontainers.image.description="Flower for Bloomfarm: its workers and tasks on a page"
COPY --from=flower-packages /opt/farm /opt/farm
COPY --from=code /code /opt/farm
USER 10001:10001
WORKDIR /var/lib/farm
# It does not start on this address without FLOWER_BASIC_AUTH.
ENV FARM_FLOWER__HOST=0.0.0.0
# What it remembers, as long as the container does: its root may be read-only. Give it a volume to remember for longer.
ENV FARM_FLOWER__DB=/tmp/flower.db
EXPOSE 5555
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python3", "-c", \
  "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('FARM_FLOWER__PORT', '5555') + '/healthcheck', timeout=4)"]
CMD ["farm", "flower"]

# ---- worker-cpu: the engine's C++ compiled here for three kinds of CPU, since the image has no compiler

FROM build AS cpu-packages
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /tools/bin/pip --python /opt/farm/bin/python3 install --constraint constraints.txt \
      "$(echo /requirements/*.whl)[worker]" \
 && /tools/bin/pip --python /opt/farm/bin/python3 uninstall --yes bloomfarm

FROM build AS cpu-code
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
COPY . .
RUN if [ "$(uname -m)" = x86_64 ]; then for march in x86-64-v3 x86-64-v4 x86-64-v4+avx512vnni; do \
      python3 -m workers.engine.native.build --into workers/engine/native/prebuilt --march "$march" || exit 1; \
    done; fi \
 && /tools/bin/pip wheel --no-build-isolation --no-deps --wheel-dir /dist . \
 && /tools/bin/pip --python /opt/farm/bin/python3 install --no-deps --no-index --prefix /code /dist/*.whl

FROM python AS worker-cpu
LABEL org.opencontainers.image.title="bloomfarm-worker-cpu" \
      org.opencontainers.image.description="A Bloomfarm worker that generates on the CPU"
COPY --from=cpu-packages /opt/farm /opt/farm
COPY --from=cpu-code /code /opt/farm
USER 10001:10001
WORKDIR /var/lib/farm
ENV FARM_WORKER__HEARTBEAT_FILE=/run/farm/heartbeat
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["sh", "-c", "test $(($(date +%s) - $(stat -c %Y \"$FARM_WORKER__HEARTBEAT_FILE\"))) -lt 30"]
CMD ["farm", "worker"]

# ---- worker: CUDA, and the C compiler with Python's headers that Triton calls when it runs

FROM ${CUDA_IMAGE} AS cuda
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev python3 python3-dev tzdata \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --system --gid 10001 farm \
 && useradd --system --key SYS_UID_MAX=10001 --uid 10001 --gid farm \
      --home-dir /cache --no-create-home --shell /usr/sbin/nologin farm \
 && install --directory --owner=farm --group=farm --mode=0700 /cache /run/farm /var/lib/farm
ENV PATH=/opt/farm/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton
LABEL org.opencontainers.image.vendor="Bloomfarm" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0"

FROM cuda AS cuda-build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_CACHE_DIR=/var/cache/pip
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /tools \
 && python3 -m venv --without-pip /opt/farm
WORKDIR /src
COPY constraints.txt ./

FROM cuda-build AS worker-packages
COPY --from=build /requirements /requirements
RUN --mount=type=cache,target=/var/cache/pip --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    /tools/bin/pip --python /opt/farm/bin/python3 install --constraint constraints.txt \
      "$(echo /requirements/*.whl)[worker]" \
 && /tools/bin/pip --python /opt/farm/bin/python3 uninstall --yes bloomfarm

FROM cuda-build AS worker-code
COPY --from=code /dist /dist
RUN /tools/bin/pip --python /opt/farm/bin/python3 install --no-deps --no-index --prefix /code /dist/*.whl

FROM cuda AS worker
LABEL org.opencontainers.image.title="bloomfarm-worker" \
      org.opencontainers.image.description="A Bloomfarm worker on NVIDIA GPUs"
COPY --from=worker-packages /opt/farm /opt/farm
COPY --from=worker-code /code /opt/farm
USER 10001:10001
WORKDIR /var/lib/farm
ENV FARM_WORKER__HEARTBEAT_FILE=/run/farm/heartbeat
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
  CMD ["sh", "-c", "test $(($(date +%s) - $(stat -c %Y \"$FARM_WORKER__HEARTBEAT_FILE\"))) -lt 30"]
CMD ["farm", "worker"]
