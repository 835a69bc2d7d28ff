#!/usr/bin/env bash
# Evaluates the newest checkpoint of a training: prints COCO's AP.
#
#   bash scripts/eval.sh [float16|bfloat16|tf32|float32] [FOLDER] [RECIPE.py]
#       [FLAG ...]
#
# FOLDER is the workdir of the training, with its file last_checkpoint; without
# it, $RESULTS, or else /results. Without a precision, it is tf32 on GPUs that
# have it, otherwise float32. The recipe and the data set are those of the
# training, unless a recipe file or flags name others.
#
# FOLDER/inference gets bbox.json, segm.json, predictions.npz and
# coco_results.json; FOLDER/log.txt gets the time, the speed and the AP.
#
# A FLAG is any flag of `python -m maskrcnn_jax.main`, for example
# --checkpoint=CHECKPOINT or --config.data.eval.images=DIR.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
show_help "$@"
evaluate_run '' "$@"
