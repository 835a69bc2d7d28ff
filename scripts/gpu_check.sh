#!/usr/bin/env bash
# Checks and measures the kernels on a GPU.
#
#   bash scripts/gpu_check.sh [--folder=gpu_check] [--size=training]
#       [--parts=doctor,check,kernels,train,inference]
#
# The machine's Python ($PYTHON, or else python3) must have JAX for GPUs.
# Nothing is downloaded or installed. The folder gets the tables and logs of the
# parts:
#   doctor     doctor.txt: versions, devices, numerics, kernels on small input
#   check      check.txt: each kernel compared with plain JAX, in the sizes of a
#              training step
#   kernels    kernels.txt: the table of scripts/benchmark_kernels.py;
#              kernels.json: its figures
#   train, inference
#              train-xla.txt, train-pallas.txt, ...: images per second of
#              configs/r50_fpn.py in bf16 at 800x1344, batch size 8, without and
#              with kernels, and the ten largest costs. These parts need the
#              packages of setup.cfg, and are left out if one is missing.
# Compiled programs are kept in the folder compiled, so that another call, for
# other parts or for parts that were not finished, compiles less.
#
# This rehearsal shows that the script runs:
#
#   JAX_PLATFORMS=cpu bash scripts/gpu_check.sh --size=tiny
#
# It runs all parts on tiny input, with the recipe of the tests. Kernels are
# interpreted, so that the times have no meaning.
# Exit status: 0 all parts ran and agreed, 1 a part did not, 2 JAX is missing or
# an argument is wrong.
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
    echo "error: --parts: there is no part $part; the parts are: $all" >&2
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
  echo "error: $python has no jax; give another Python as PYTHON=..." >&2
  exit 2
fi
# The operations import jaxtyping only for their annotations.
if ! has jaxtyping; then
  stand_in="$(mktemp -d)"
  trap 'rm -rf "$stand_in"' EXIT
  cat > "$stand_in/jaxtyping.py" << 'PYTHON'
"""Replaces jaxtyping if it is not installed: its annotations mean nothing."""


class _Any:

  def __class_getitem__(cls, item):
    return object


from jax import Array  # noqa: E402

Bool = Float = Float32 = Int = Key = Num = PyTree = Shaped = UInt8 = _Any
PYTHON
  export PYTHONPATH="$PYTHONPATH:$stand_in"
fi

failed=0
left_out=""
# step NAME COMMAND...: runs the command, shows its output and saves it as
# NAME.txt in the folder, and records a failure.
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
  echo "NOT RUN:$left_out, because these packages are missing:$missing"
fi
if [ "$failed" = 0 ]; then
  echo "All parts that ran agreed; see $folder."
fi
exit "$failed"
