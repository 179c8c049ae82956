# hkdpipe with an NVIDIA GPU, or without one:
#   docker build -t hkdpipe .
#   mkdir -p runs && chmod a+rwx runs    # the container's user has the number 10001
#   docker run --rm --gpus all -v "$PWD/runs:/data/runs" hkdpipe run --preset digits
# Any image with Debian's or Ubuntu's packages and Python 3.11 or newer among them serves as the base; torch
# brings its own CUDA libraries.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE_IMAGE}

# Versions of the distribution's packages are the base image's matter.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -c 'import sys; assert sys.version_info >= (3, 11), "hkdpipe needs Python 3.11 or newer"' \
    && python3 -m venv /opt/hkdpipe
ENV PATH=/opt/hkdpipe/bin:$PATH

# The requirements first, in a layer of their own: a change of the sources does not install torch again.
WORKDIR /opt/source
COPY pyproject.toml constraints.txt ./
RUN python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && pip install --no-cache-dir -c constraints.txt -r requirements.txt

COPY LICENSE README.md setup.py ./
COPY hkdpipe hkdpipe
COPY manifests manifests
COPY trainer trainer
COPY stages stages
COPY pipeline pipeline
RUN pip install --no-cache-dir --no-deps . \
    && useradd --create-home --uid 10001 hkdpipe \
    && mkdir /data \
    && chown hkdpipe:hkdpipe /data

USER 10001
WORKDIR /data
ENTRYPOINT ["hkdpipe"]
CMD ["--help"]
