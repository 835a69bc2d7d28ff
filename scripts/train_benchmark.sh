#!/usr/bin/env bash
# Measures the speed of training of Mask R-CNN R50-FPN.
#
#   bash scripts/train_benchmark.sh [float16|bfloat16|tf32|float32] [COUNTS]
#       [FLAG ...]
#   bash scripts/train_benchmark.sh float16 1,4,8
#
# COUNTS are numbers of GPUs. The speed is measured with each of them, and a
# table shows how many times faster it is than with the first. Without COUNTS,
# it is measured on all GPUs of the machine. Without a precision, it is tf32 on
# GPUs that have it, otherwise float32. The last line of the output is the speed
# with the last number of GPUs, in images/s.
#
# Each GPU processes $BATCH made-up images of 800x1333 pixels in a step: by
# default 8, and 4 on GPUs older than the Ampere architecture. Nothing is read
# from disk. On a CPU, COUNTS are simulated devices, with 1 image each.
#
# A FLAG is any flag of `python -m maskrcnn_jax.benchmark`, for example
# --config=RECIPE, --size=512x512 or --steps=100.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
show_help "$@"
benchmark train '' "$@"
