#!/usr/bin/env bash
# Checks and measures this program on a GPU, in a given time.
#
#   bash scripts/gpu_check.sh [--folder=gpu_check] [--size=training]
#       [--parts=PART,PART,...] [--limits=PART:SECONDS,...] [--total=SECONDS]
#       [--again] [--data=DIR] [--torch_python=PYTHON]
#
# The machine's Python ($PYTHON, or else python3) must have JAX for GPUs.
# Nothing is downloaded or installed. The parts, in the order in which they run,
# with their time limits in seconds:
#   doctor 60       doctor.txt: versions, devices, numerics, kernels on small
#                   input
#   check 90        check.txt: each kernel compared with plain JAX, in the sizes
#                   of a training step
#   train 150       train-xla.txt, train-pallas.txt: the training step of
#                   configs/r50_fpn.py in bf16 with 8 images of 800x1344,
#                   without and with kernels
#   inference 120   inference-xla.txt, inference-pallas.txt: the same of
#                   inference
#   torchvision 320 train-torchvision-xla.txt, ...: the same in turn with steps
#                   of torchvision on the same GPU
#   trace 90        trace-xla.txt, trace-pallas.txt: the ten largest costs of a
#                   training step; profile-xla, profile-pallas: its profile
#   largest 400     train-largest-xla.txt, ...: the same with as many images as
#                   fit
#   precisions 300  train-fp16.txt, train-tf32.txt, inference-fp16.txt, ...:
#                   other precisions, without kernels
#   learning 240    learning-xla.txt, learning-pallas.txt: the log of 300 steps
#                   of configs/nuclei.py in bf16 with an evaluation, without and
#                   with kernels. --data=DIR has images/, instances_train.json
#                   and instances_val.json. Without it, this part is left out.
#   cpu 150         cpu-inference.txt, cpu-train.txt: this program on the CPU,
#                   at 512x512 in float32, in turn with torchvision
#   kernels 120     kernels.txt: the table of scripts/benchmark_kernels.py;
#                   kernels.json: its figures
# --limits=train:300,cpu:60 sets other limits. --total=540 ends the whole call
# after 540 seconds: a part gets the time that is left, or does not run.
#
# Each result is written while it is measured, as NAME.partial.txt, and becomes
# NAME.txt when it is complete. Another call with the same folder leaves out the
# results that are complete, and so continues a call that was cut short;
# --again measures them once more. Compiled programs are kept in the folder
# compiled, so that another call compiles less.
#
# --torch_python names the Python that has torch and torchvision, if that is
# another. If it has none, or if a package of setup.cfg is missing, the parts
# that need it are left out.
#
# This rehearsal shows that the script runs:
#
#   JAX_PLATFORMS=cpu bash scripts/gpu_check.sh --size=tiny
#
# It runs all parts on tiny input, with small recipes and drawn images. Kernels
# are interpreted, so that the times have no meaning.
# Exit status: 0 all results are complete or were left out, 1 a result failed or
# its time ran out, 2 JAX is missing or an argument is wrong.
set -uo pipefail
began=$SECONDS
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
torch_python=""
folder=gpu_check
size=training
data=""
again=""
total=""
all='doctor check train inference torchvision trace largest precisions'
all="$all learning cpu kernels"
parts="$all"
declare -A limit=([doctor]=60 [check]=90 [train]=150 [inference]=120
  [torchvision]=320 [trace]=90 [largest]=400 [precisions]=300 [learning]=240
  [cpu]=150 [kernels]=120)

fail() {
  echo "error: $*" >&2
  exit 2
}

for argument in "$@"; do
  value="${argument#*=}"
  case "$argument" in
    --folder=?*) folder="$value" ;;
    --size=training | --size=tiny) size="$value" ;;
    --parts=?*) parts="${value//,/ }" ;;
    --limits=?*)
      for pair in ${value//,/ }; do
        [[ "$pair" =~ ^([a-z]+):([1-9][0-9]*)$ ]] ||
          fail "--limits: $pair is not PART:SECONDS"
        [[ -v limit[${BASH_REMATCH[1]}] ]] ||
          fail "--limits: there is no part ${BASH_REMATCH[1]};" \
            "the parts are: $all"
        limit[${BASH_REMATCH[1]}]=${BASH_REMATCH[2]}
      done
      ;;
    --total=*)
      [[ "$value" =~ ^[1-9][0-9]*$ ]] || fail "--total=$value: give seconds"
      total="$value"
      ;;
    --again) again=1 ;;
    --data=?*) data="$value" ;;
    --torch_python=?*) torch_python="$value" ;;
    -h | --help)
      sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"
      exit 0
      ;;
    *) fail "$argument is not understood; see --help" ;;
  esac
done
for part in $parts; do
  [[ " $all " == *" $part "* ]] ||
    fail "--parts: there is no part $part; the parts are: $all"
done
if [ -n "$data" ]; then
  for name in images instances_train.json instances_val.json; do
    [ -e "$data/$name" ] || fail "--data: there is no $data/$name"
  done
fi

model=(--config=configs/r50_fpn.py --size=800x1344)
peer=("${model[@]}")
cpu=(--config=configs/r50_fpn.py --size=512x512)
batch=(--batch_size=8 --seconds=8)
largest=(--max_batch_size=256)
turns=(--seconds=6)
recipe=(--config=configs/nuclei.py --config.train.num_steps=300)
if [ "$size" = tiny ]; then
  model=(--config=tests/tiny.py --size=64x96 --objects=3)
  # torchvision has no counterpart of tests/tiny.py.
  peer=(--config=tests/tiny.py --config.model.width=64
    --config.model.box_fcs=2 --size=64x96 --objects=3)
  cpu=("${peer[@]}")
  batch=(--batch_size=1 --steps=1)
  largest=(--max_batch_size=2)
  turns=(--steps=2)
  recipe=(--config=tests/tiny.py --config.train.num_steps=2)
fi
mkdir -p "$folder" || exit 1
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/compiled}"

has() { "$python" -c "import $1" 2> /dev/null; }
has jax || fail "$python has no jax; give another Python as PYTHON=..."
# The operations import jaxtyping only for their annotations.
if ! has jaxtyping; then
  cat > "$work/jaxtyping.py" << 'PYTHON'
"""Replaces jaxtyping if it is not installed: its annotations mean nothing."""


class _Any:

  def __class_getitem__(cls, item):
    return object


from jax import Array  # noqa: E402

Bool = Float = Float32 = Int = Key = Num = PyTree = Shaped = UInt8 = _Any
PYTHON
fi
if ! has tqdm; then
  cat > "$work/tqdm.py" << 'PYTHON'
"""Replaces tqdm if it is not installed: shows no progress."""


class tqdm:

  def __init__(self, items=(), **_):
    self.items = items

  def __iter__(self):
    return iter(self.items)


def trange(count, **_):
  return range(count)
PYTHON
fi
export PYTHONPATH="$PYTHONPATH:$work"
compare=(--compare=torchvision)
[ -z "$torch_python" ] || compare+=("--torch_python=$torch_python")

failed=""
left_out=()
# step NAME COMMAND...: runs the command unless its result is complete, within
# the time that is left to the part; shows its output and saves it as NAME.txt
# in the folder.
step() {
  local name="$1" file="$folder/$1" left status
  shift
  if [ -z "$again" ] && [ -e "$file.txt" ]; then
    echo "== $name is complete"
    return
  fi
  left=$((deadline - SECONDS))
  if [ "$left" -le 0 ]; then
    echo "NOT RUN ($name: no time is left)"
    failed="$failed $name"
    return
  fi
  echo "== $name (at most $left s)"
  rm -f "$file.txt"
  timeout --kill-after=5 "$left" "$@" 2>&1 | tee "$file.partial.txt"
  status="${PIPESTATUS[0]}"
  if [ "$status" = 0 ]; then
    mv "$file.partial.txt" "$file.txt"
  elif [ "$status" = 124 ] || [ "$status" = 137 ]; then
    echo "FAILED ($name: its time of $left s ran out)"
    failed="$failed $name"
  else
    echo "FAILED ($name: exit status $status)"
    failed="$failed $name"
  fi
}

# benchmark NAME FLAG...: a step that runs the benchmark.
benchmark() {
  local name="$1"
  shift
  step "$name" "$python" -m maskrcnn_jax.benchmark "$@"
}

# learn KERNELS: a step that trains and evaluates, and keeps the log only.
learn() {
  local run="$work/learning-$1"
  step "learning-$1" "$python" -m maskrcnn_jax.main "${recipe[@]}" \
    --workdir="$run" --config.precision=bf16 --config.kernels="$1" \
    --config.train.checkpoint_every=1000000 \
    --config.data.train.images="$data/images" \
    --config.data.train.annotations="$data/instances_train.json" \
    --config.data.eval.images="$data/images" \
    --config.data.eval.annotations="$data/instances_val.json"
  [ ! -e "$run/metrics.jsonl" ] ||
    cp "$run/metrics.jsonl" "$folder/learning-$1.jsonl"
}

# missing PYTHON MODULE...: prints the modules that cannot be imported.
missing() {
  "$1" -c '
import importlib
import sys

for name in sys.argv[1:]:
  try:
    importlib.import_module(name)
  except ImportError:
    print(name, end=" ")
' "${@:2}" 2> /dev/null || echo Python
}

# Succeeds if nothing that a part needs is missing; else notes the part.
can_run() {
  local reason=""
  case "$1" in
    doctor | check | kernels) ;;
    *)
      [ -v packages ] || packages="$(missing "$python" flax optax \
        ml_collections orbax.checkpoint grain absl PIL pycocotools rich yaml \
        tensorboardX)"
      [ -z "$packages" ] || reason="these packages are missing: $packages"
      ;;
  esac
  case "$1" in
    torchvision | cpu)
      [ -v torch ] ||
        torch="$(missing "${torch_python:-$python}" torch torchvision)"
      [ -z "$torch" ] ||
        reason="${torch_python:-$python} cannot import: $torch"
      ;;
    learning)
      if [ -z "$data" ] && [ "$size" != tiny ]; then
        reason="no data set was given with --data=DIR"
      fi
      ;;
  esac
  [ -z "$reason" ] || left_out+=("$1, because $reason")
  [ -z "$reason" ]
}

for part in $all; do
  [[ " $parts " == *" $part "* ]] || continue
  can_run "$part" || continue
  deadline=$((SECONDS + limit[$part]))
  if [ -n "$total" ] && [ "$deadline" -gt $((began + total)) ]; then
    deadline=$((began + total))
  fi
  case "$part" in
    doctor) step doctor "$python" -m maskrcnn_jax.doctor ;;
    check) step check "$python" scripts/check_kernels.py --size="$size" ;;
    train | inference)
      for kernels in xla pallas; do
        benchmark "$part-$kernels" "${model[@]}" --mode="$part" \
          --precision=bf16 --kernels="$kernels" "${batch[@]}"
      done
      ;;
    largest)
      for kernels in xla pallas; do
        for mode in train inference; do
          benchmark "$mode-largest-$kernels" "${model[@]}" --mode="$mode" \
            --precision=bf16 --kernels="$kernels" "${batch[@]}" "${largest[@]}"
        done
      done
      ;;
    torchvision)
      for kernels in xla pallas; do
        for mode in train inference; do
          benchmark "$mode-torchvision-$kernels" "${peer[@]}" --mode="$mode" \
            --precision=bf16 --kernels="$kernels" "${batch[0]}" "${turns[@]}" \
            "${compare[@]}"
        done
      done
      ;;
    trace)
      for kernels in xla pallas; do
        benchmark "trace-$kernels" "${model[@]}" --mode=train --precision=bf16 \
          --kernels="$kernels" "${batch[0]}" --steps=3 --costs=10 \
          --trace="$folder/profile-$kernels"
      done
      ;;
    precisions)
      for mode in train inference; do
        for precision in tf32 fp16; do
          benchmark "$mode-$precision" "${model[@]}" --mode="$mode" \
            --precision="$precision" --kernels=xla "${batch[@]}"
        done
      done
      ;;
    learning)
      if [ -z "$data" ]; then
        data="$work/shapes"
        "$python" -m maskrcnn_jax.data.shapes "$data" --train 8 --val 4 \
          --size 64 > /dev/null || exit 1
      fi
      for kernels in xla pallas; do learn "$kernels"; done
      ;;
    cpu)
      for mode in inference train; do
        options=("${cpu[@]}" --mode="$mode" --precision=fp32 "${turns[@]}")
        [ "$mode" = train ] || options+=(--paste)
        JAX_PLATFORMS=cpu benchmark "cpu-$mode" "${options[@]}" "${compare[@]}"
      done
      ;;
    kernels)
      step kernels "$python" scripts/benchmark_kernels.py --size="$size" \
        --json="$folder/kernels.json"
      ;;
  esac
done
for line in ${left_out[@]+"${left_out[@]}"}; do
  echo "NOT RUN: $line"
done
if [ -n "$failed" ]; then
  echo "NOT COMPLETE:$failed; the same command continues with these."
  exit 1
fi
echo "All results are in $folder."
