#!/usr/bin/env bash
# Builds the image maskrcnn_jax, which has the project and JAX for NVIDIA GPUs.
#
#   bash scripts/docker/build.sh [FLAG ...]
#
# A FLAG is any flag of `docker build`, for example --no-cache or --tag=NAME. The
# image needs 8 GB. The variable DOCKER names another program with the same
# arguments, such as podman.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/engine.sh"
exec "$engine" build --file="$root/scripts/docker/Dockerfile" \
  --tag=maskrcnn_jax "$@" "$root"
