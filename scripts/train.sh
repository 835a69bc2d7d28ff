#!/usr/bin/env bash
# Trains Mask R-CNN R50-FPN on COCO 2014 and evaluates it.
#
#   bash scripts/train.sh [float16|bfloat16|tf32|float32] [FLAG ...]
#   bash scripts/train.sh float16 --init_from=weights/resnet50
#
# All GPUs of the machine are used; CUDA_VISIBLE_DEVICES chooses some. The recipe
# is r50_fpn_bs64 (64 images a step) on GPUs of the Ampere architecture and newer
# ones, and r50_fpn (16 images a step) on older GPUs and on a CPU. Either needs
# the weights of a pretrained ResNet: --init_from=CHECKPOINT. Without a
# precision, it is tf32 on GPUs that have it, otherwise float32.
#
# The folder $RESULTS, or else /results, gets a checkpoint every 2,500 steps and
# at the end (checkpoints/, last_checkpoint), log.txt, and the results of the
# evaluation at the end (inference/). The same command continues a training that
# was stopped. Both recipes read COCO from data/coco. README.md says where the
# two files of annotations for COCO 2014 come from that its archives lack.
#
# A FLAG is any flag of `python -m maskrcnn_jax.main`, for example
# --config=RECIPE, --config.data.train.images=DIR or --skip_test. YEAR=2017 bash
# scripts/train.sh takes COCO 2017.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
show_help "$@"

precision=auto
if (( $# )) && ! is_for_program "$1"; then
  read_precision "$1" ||
    fail "$1 is not a precision; give float16, bfloat16, tf32 or float32"
  shift
fi
options=()
add_precision "$@"
if ! is_given workdir "$@"; then
  results=${RESULTS:-/results}
  mkdir -p "$results" 2> /dev/null && [[ -w $results ]] ||
    fail "cannot write to $results; name another folder: RESULTS=DIR bash ..."
  options+=(--workdir="$results")
fi
if ! is_given 'config([-_]file)?' "$@"; then
  find_devices
  recipe=r50_fpn
  (( capability >= 80 )) && recipe=r50_fpn_bs64
  echo "==> The recipe is $recipe, for $num_devices $platform device(s)." >&2
  options+=(--config="$recipe:${YEAR:-2014}")
fi
exec "$python" -m maskrcnn_jax.main ${options[@]+"${options[@]}"} "$@"
