#!/usr/bin/env bash
# Tries a wheel in an empty environment:
#
#   bash scripts/try_wheel.sh WHEEL PYTHON...
#
# For each PYTHON, a command or a path, the script makes an environment and
# installs the wheel. Then, in an empty folder, it
#   1. runs maskrcnn --help and the doctor;
#   2. trains a few steps with a packaged recipe, evaluates, and predicts;
#   3. finds objects with three lines of Python;
#   4. exports the model, and runs it in another environment, which has only JAX,
#      NumPy and Pillow.
# It needs the network for packages, and takes about four minutes for each PYTHON.
# Exit status: 0 all is well, 1 a step failed, 2 wrong arguments.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/python_environment.sh"

case "${1:-}" in
  -h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
(($# >= 2)) || fail 'give a wheel and at least one Python; see --help.'
[[ -f "$1" ]] || fail "there is no file $1."
wheel=$(realpath "$1")
shift

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$work/compiled}

try_with() {
  local python=$1 folder=$2
  "$python" -m venv "$folder/empty"
  tell "Installing the wheel with $("$python" --version)"
  "$folder/empty/bin/pip" install -q "$wheel"
  local maskrcnn=$folder/empty/bin/maskrcnn
  mkdir "$folder/there"
  cd "$folder/there"

  tell 'maskrcnn --help, maskrcnn doctor'
  "$maskrcnn" --help > /dev/null
  "$maskrcnn" doctor

  tell 'Training four steps on drawn shapes, evaluating and predicting'
  "$maskrcnn" shapes drawn --train=8 --val=2 --size=64 > /dev/null
  "$maskrcnn" --config=shapes --workdir=run \
    --config.train.num_steps=4 --config.train.batch_size=2 \
    --config.data.train.images=drawn/images \
    --config.data.train.annotations=drawn/instances_train.json \
    --config.data.eval.images=drawn/images \
    --config.data.eval.annotations=drawn/instances_val.json
  "$maskrcnn" --mode=predict --workdir=run --input=drawn/samples
  for file in inference/coco_results.json predictions/predictions.json; do
    [[ -s "run/$file" ]] || { echo "There is no $file." >&2; exit 1; }
  done

  tell 'Three lines of Python'
  "$folder/empty/bin/python" - <<'PYTHON'
import maskrcnn_jax
detector = maskrcnn_jax.load('run')
print(detector('drawn/images/val_00000.jpg'))
PYTHON

  tell 'Exporting, and loading with JAX and NumPy only'
  "$maskrcnn" export --checkpoint=run --out=exported --platforms=cpu \
    --config.detections.min_score=0
  "$python" -m venv "$folder/loading"
  "$folder/loading/bin/pip" install -q jax numpy pillow
  "$folder/loading/bin/python" - <<'PYTHON'
import importlib.util
import sys
assert importlib.util.find_spec('maskrcnn_jax') is None
sys.path.insert(0, 'exported')
from loader import load
import numpy as np
from PIL import Image
picture = np.array(Image.open('drawn/images/val_00000.jpg').convert('RGB'))
[objects] = load('exported')([picture])
assert len(objects['scores']) and np.isfinite(objects['boxes']).all()
print(len(objects['scores']), 'objects, the best is a', objects['names'][0])
PYTHON
}

count=0
for python in "$@"; do
  count=$((count + 1))
  mkdir "$work/$count"
  (try_with "$python" "$work/$count")
done
tell "$(basename "$wheel") works with: $*"
