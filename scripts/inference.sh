#!/usr/bin/env bash
# Detects the objects in a data set with the newest checkpoint of a training,
# and computes no AP.
#
#   bash scripts/inference.sh [float16|bfloat16|tf32|float32] [FOLDER]
#       [RECIPE.py] [FLAG ...]
#
# FOLDER is the workdir of the training, with its file last_checkpoint; without
# it, $RESULTS, or else /results. Without a precision, it is tf32 on GPUs that
# have it, otherwise float32. The images are those of the evaluation set of the
# training, unless a recipe file or flags name others; annotations are not
# needed.
#
# FOLDER/inference gets bbox.json, segm.json and predictions.npz; FOLDER/log.txt
# gets the time and the speed.
#
# A FLAG is any flag of `python -m maskrcnn_jax.main`, for example
# --checkpoint=CHECKPOINT or --config.data.eval.images=DIR.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
show_help "$@"
evaluate_run --skip_eval "$@"
