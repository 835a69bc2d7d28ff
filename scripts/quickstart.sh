#!/usr/bin/env bash
# From a fresh clone to pictures with predicted masks: makes the environment,
# draws a small data set, trains on it, evaluates and predicts.
#
#   bash scripts/quickstart.sh [DIR]
#
# Everything goes to DIR (default: quickstart/ in the project).  Run again, it
# goes on where it stopped.
set -euo pipefail
if (( $# > 1 )) || [[ "${1:-}" == -* ]]; then
  echo "usage: bash scripts/quickstart.sh [DIR]" >&2
  exit 2
fi
if [[ -n "${1:-}" ]]; then
  mkdir -p "$1"
  out=$(cd "$1" && pwd)
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${out:-$PWD/quickstart}
source scripts/python_environment.sh

make_environment
python=.venv/bin/python
data=$out/data
run=$out/run

# instances_val.json is written last.
if [[ ! -f $data/instances_val.json ]]; then
  tell "Drawing 460 images of shapes into $data (seconds)"
  $python -m maskrcnn_jax.data.shapes "$data" > /dev/null
fi

options=(
  --config=configs/shapes.py
  --workdir="$run"
  --config.data.train.images="$data/images"
  --config.data.train.annotations="$data/instances_train.json"
  --config.data.eval.images="$data/images"
  --config.data.eval.annotations="$data/instances_val.json"
)
tell "Training in $run, then evaluating on held-out images" \
  '(about 8 minutes on 2 cores)'
$python -m maskrcnn_jax.main "${options[@]}"
# Ctrl-C in training is an orderly end, with status 0.
if [[ -f $run/interrupted ]]; then
  tell 'Stopped. The same command goes on from there.'
  exit 130
fi

tell "Predicting on the images in $data/samples (under a minute)"
$python -m maskrcnn_jax.main "${options[@]}" \
  --mode=predict --input="$data/samples"

tell 'Done.'
printf '%s\n' \
  "  pictures with predicted masks  $run/predictions" \
  "  average precision              $run/inference/coco_results.json" \
  "  checkpoints and log            $run"
