#!/usr/bin/env bash
# Proof of the kernels on a GPU, in one call:
#
#   bash scripts/gpu_check.sh [FOLDER]
#   JAX_PLATFORMS=cpu bash scripts/gpu_check.sh FOLDER tiny    a rehearsal
#
# For a machine whose Python ($PYTHON, else python3) has JAX for GPUs; nothing is
# downloaded or installed. FOLDER (default: gpu_check) gets the tables and logs:
#   doctor.txt   versions, devices, numerics, small cases of each kernel
#   check.txt    each kernel against its reference at the sizes of training
#   kernels.txt  scripts/benchmark_kernels.py; kernels.json the same as numbers
#   train-*.txt, inference-*.txt  images/s of configs/r50_fpn.py in bf16 at
#                800x1344, batch 8, with the ten largest costs; with kernels
#                (pallas) and without (xla)
# The last needs the packages of setup.cfg, and is left out without them.
# The rehearsal runs all of it on next to nothing, to see that it runs: kernels
# are interpreted, and times say nothing.
# Exit status: 0 all ran and agreed, 1 something did not, 2 no JAX, or no such size.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
folder="${1:-gpu_check}"
size="${2:-training}"
case "$size" in
  training) model=(--size=800x1344 --batch_size=8 --costs=10) ;;
  tiny) model=(--size=64x96 --batch_size=1 --costs=10 --steps=1) ;;
  *)
    echo "error: the size is training or tiny, not $size" >&2
    exit 2
    ;;
esac
mkdir -p "$folder" || exit 1
export PYTHONPATH="$PWD" JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"

has() { "$python" -c "import $1" 2> /dev/null; }
if ! has jax; then
  echo "error: $python has no jax; name another with PYTHON=..." >&2
  exit 2
fi
# The operations import jaxtyping for their annotations alone.
if ! has jaxtyping; then
  stand_in="$(mktemp -d)"
  trap 'rm -rf "$stand_in"' EXIT
  cat > "$stand_in/jaxtyping.py" << 'PYTHON'
"""Stands in for jaxtyping where it is missing: annotations that say nothing."""


class _Any:

  def __class_getitem__(cls, item):
    return object


from jax import Array  # noqa: E402

Bool = Float = Int = Key = Num = Shaped = UInt8 = _Any
PYTHON
  export PYTHONPATH="$PYTHONPATH:$stand_in"
fi

failed=0
# step NAME COMMAND...: runs, shows and keeps; remembers a failure.
step() {
  local name="$1"
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$folder/$name.txt"
  local status="${PIPESTATUS[0]}"
  if [ "$status" != 0 ]; then
    echo "FAILED ($name: exit status $status)"
    failed=1
  fi
}

step doctor "$python" -m maskrcnn_jax.doctor
step check "$python" scripts/check_kernels.py --size="$size"
step kernels "$python" scripts/benchmark_kernels.py --size="$size" \
  --json="$folder/kernels.json"
missing=""
for package in flax optax ml_collections orbax.checkpoint grain absl PIL \
    pycocotools; do
  has "$package" || missing="$missing $package"
done
if [ -n "$missing" ]; then
  echo "Training step and inference not run: no$missing."
else
  for mode in train inference; do
    for kernels in xla pallas; do
      step "$mode-$kernels" "$python" -m maskrcnn_jax.benchmark \
        --config=configs/r50_fpn.py --mode="$mode" --precision=bf16 \
        --kernels="$kernels" "${model[@]}"
    done
  done
fi
[ "$failed" = 0 ] && echo "All ran and agreed; see $folder."
exit "$failed"
