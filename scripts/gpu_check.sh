#!/usr/bin/env bash
# Proof of the kernels on a GPU:
#
#   bash scripts/gpu_check.sh [--folder=gpu_check] [--size=training]
#       [--parts=doctor,check,kernels,train,inference]
#
# For a machine whose Python ($PYTHON, else python3) has JAX for GPUs; nothing is
# downloaded or installed. The folder gets the tables and logs of the parts:
#   doctor     doctor.txt: versions, devices, numerics, small cases of kernels
#   check      check.txt: each kernel against its reference at training's sizes
#   kernels    kernels.txt of scripts/benchmark_kernels.py, and kernels.json
#   train, inference
#              train-xla.txt, train-pallas.txt, ...: images/s of
#              configs/r50_fpn.py in bf16 at 800x1344, batch 8, without and with
#              kernels, and the ten largest costs. They need the packages of
#              setup.cfg, and are left out without them.
# What is compiled is kept in the folder compiled, so that a second call for
# other parts, or for those that did not get done, compiles less.
#
#   JAX_PLATFORMS=cpu bash scripts/gpu_check.sh --size=tiny
#
# is a rehearsal: all of it on next to nothing, with the recipe of the tests, to
# see that it runs. Kernels are interpreted, and times say nothing.
# Exit status: 0 all ran and agreed, 1 something did not, 2 no JAX, or wrong
# arguments.
set -uo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
folder=gpu_check
size=training
all='doctor check kernels train inference'
parts="$all"
for argument in "$@"; do
  case "$argument" in
    --folder=?*) folder="${argument#*=}" ;;
    --size=training | --size=tiny) size="${argument#*=}" ;;
    --parts=?*) parts="${argument#*=}" && parts="${parts//,/ }" ;;
    -h | --help)
      sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
      exit 0
      ;;
    *)
      echo "error: $argument is not understood; see --help" >&2
      exit 2
      ;;
  esac
done
for part in $parts; do
  if [[ " $all " != *" $part "* ]]; then
    echo "error: --parts: there is no $part; there are: $all" >&2
    exit 2
  fi
done
model=(--config=configs/r50_fpn.py --size=800x1344 --batch_size=8 --costs=10)
if [ "$size" = tiny ]; then
  model=(--config=tests/tiny.py --size=64x96 --batch_size=1 --costs=10
    --objects=3 --steps=1)
fi
mkdir -p "$folder" || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/compiled}"

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
left_out=""
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

missing=""
for package in flax optax ml_collections orbax.checkpoint grain absl PIL \
    pycocotools; do
  has "$package" || missing="$missing $package"
done
for part in $parts; do
  case "$part" in
    doctor) step doctor "$python" -m maskrcnn_jax.doctor ;;
    check) step check "$python" scripts/check_kernels.py --size="$size" ;;
    kernels)
      step kernels "$python" scripts/benchmark_kernels.py --size="$size" \
        --json="$folder/kernels.json"
      ;;
    *)
      if [ -n "$missing" ]; then
        left_out="$left_out $part"
        continue
      fi
      for kernels in xla pallas; do
        step "$part-$kernels" "$python" -m maskrcnn_jax.benchmark \
          --mode="$part" --precision=bf16 --kernels="$kernels" "${model[@]}"
      done
      ;;
  esac
done
if [ -n "$left_out" ]; then
  echo "NOT RUN:$left_out, for these packages are missing:$missing"
fi
if [ "$failed" = 0 ]; then
  echo "What ran agreed; see $folder."
fi
exit "$failed"
