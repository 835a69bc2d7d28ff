#!/usr/bin/env bash
# From a fresh clone to pictures with predicted masks: makes the environment,
# draws a small data set, trains on it, evaluates and predicts.
#
#   bash scripts/quickstart.sh [DIR]
#
# All files are written to DIR (default: quickstart/ in the project). If the
# script is run again, it continues where it stopped.
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

# instances_val.json is written last, so the data set is complete if it exists.
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
  '(about 6 minutes on 2 cores)'
$python -m maskrcnn_jax.main "${options[@]}"
# Training ends with status 0 after Ctrl-C, and leaves this file.
if [[ -f $run/interrupted ]]; then
  tell 'Stopped. The same command continues from there.'
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
