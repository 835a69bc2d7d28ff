# Sourced by train.sh, eval.sh, inference.sh, train_benchmark.sh and
# inference_benchmark.sh: their help, their arguments and the devices.
#
# The variable PYTHON names the Python to run. Without it, that of .venv is
# taken, or else python3.

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
command -v "$python" > /dev/null || python=${PYTHON:-python3}
command -v "$python" > /dev/null || fail "there is no Python $python."
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

# Prints the comment at the top of the script and ends it, if the arguments ask
# for help.
show_help() {
  local argument
  for argument in "$@"; do
    if [[ $argument == --help || $argument == -h ]]; then
      sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
      exit 0
    fi
  done
}

# Succeeds if $1 is left to the program: a flag, or a KEY of the form that
# NVIDIA's Mask R-CNN For PyTorch has.
is_for_program() { [[ $1 == -* || ( $1 =~ ^[A-Z][A-Z0-9_.]*$ && ! -e $1 ) ]]; }

# Sets precision to the program's name of $1; fails if $1 is no precision.
read_precision() {
  case "$1" in
    float16 | fp16) precision=fp16 ;;
    bfloat16 | bf16) precision=bf16 ;;
    tf32 | auto) precision=$1 ;;
    float32 | fp32) precision=fp32 ;;
    *) return 1 ;;
  esac
}

# Succeeds if flag $1, a regular expression, is among the other arguments.
is_given() {
  local name=$1 argument
  shift
  for argument in "$@"; do
    [[ $argument =~ ^--?$name(=.*)?$ ]] && return
  done
  return 1
}

# Adds the flag for $precision to the array options, unless the arguments choose
# the precision in the way of NVIDIA's program.
add_precision() {
  [[ " $* " == *' DTYPE '* ]] || is_given '(amp|fp16)' "$@" ||
    options+=(--config.precision="$precision")
}

# Sets platform (cpu, gpu), num_devices, and capability: ten times the compute
# capability of the oldest GPU, or 0.
find_devices() {
  local found
  found=$("$python" - << 'PYTHON'
import sys

from maskrcnn_jax.errors import InputError, print_error
from maskrcnn_jax.runtime.cluster import find_devices

try:
  devices = find_devices()
except InputError as error:
  print_error(str(error))
  sys.exit(2)
capability = min(float(getattr(d, 'compute_capability', 0)) for d in devices)
print(devices[0].platform, len(devices), round(10 * capability))
PYTHON
  ) || exit 2
  read -r platform num_devices capability <<< "$found"
}

# Evaluates the run of a folder; flags and positional arguments as in eval.sh.
# $1 is a flag for the program, or ''.
evaluate_run() {
  local extra=$1 folder='' options=()
  [[ -z $extra ]] || options+=("$extra")
  shift
  precision=auto
  while (( $# )) && ! is_for_program "$1"; do
    if read_precision "$1"; then
      :
    elif [[ $1 == *.py || $1 == *.yaml || $1 == *.yml ]]; then
      options+=("--config=$1")
    elif [[ -n $folder ]]; then
      fail "$1 is neither a precision (float16, bfloat16, tf32, float32) nor" \
        "a recipe file, and the folder is $folder already; see --help"
    else
      folder=$1
    fi
    shift
  done
  folder=${folder:-${RESULTS:-/results}}
  if [[ ! -f $folder/last_checkpoint ]] && ! is_given checkpoint "$@"; then
    fail "there is no file $folder/last_checkpoint, which a training writes;" \
      'give the folder of a training, or --checkpoint=CHECKPOINT'
  fi
  add_precision "$@"
  exec "$python" -m maskrcnn_jax.main --mode=eval --workdir="$folder" \
    ${options[@]+"${options[@]}"} "$@"
}

# Times the mode $1 (train, inference) on the numbers of devices that $2 gives
# ('' for all of them) unless the arguments that follow name others.
benchmark() {
  local mode=$1 counts=$2
  shift 2
  precision=auto
  while (( $# )) && [[ $1 != -* ]]; do
    if [[ $1 =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]]; then
      counts=$1
    else
      read_precision "$1" || fail "$1 is neither a precision (float16," \
        'bfloat16, tf32, float32) nor numbers of GPUs, such as 1,4,8'
    fi
    shift
  done
  is_given batch_size "$@" &&
    fail 'give the number of images for each GPU instead: BATCH=8 bash ...'
  find_devices
  local default=1
  [[ $platform == gpu ]] && default=$(( capability >= 80 ? 8 : 4 ))
  local batch=${BATCH:-$default}
  [[ $batch =~ ^[1-9][0-9]*$ ]] || fail "BATCH=$batch is no number of images"
  counts=${counts:-$num_devices}

  local count text speed first='' flags visible table=''
  visible=${CUDA_VISIBLE_DEVICES:-$(seq -s, 0 $(( num_devices - 1 )))}
  for count in ${counts//,/ }; do
    # A CPU can simulate any number of devices.
    [[ $platform == cpu ]] || (( count <= num_devices )) ||
      fail "there are $num_devices GPUs here, not $count"
  done
  for count in ${counts//,/ }; do
    flags=${XLA_FLAGS:-}
    [[ $platform == cpu ]] &&
      flags+=" --xla_force_host_platform_device_count=$count"
    text=$(CUDA_VISIBLE_DEVICES=$(cut -d, -f "1-$count" <<< "$visible") \
      XLA_FLAGS=$flags "$python" -m maskrcnn_jax.benchmark --config=r50_fpn \
      --mode="$mode" --precision="$precision" --steps=20 \
      --batch_size=$(( count * batch )) "$@") || exit $?
    # All lines but the last, which is JSON.
    sed '$d' <<< "$text"
    speed=$(sed -n '$s/.*"images_per_s": \([^,}]*\).*/\1/p' <<< "$text")
    first=${first:-$speed}
    table+=$(awk -v n="$count" -v b="$batch" -v s="$speed" -v f="$first" \
      'BEGIN { printf "%7d  %12d  %8.2f  %8.2f", n, b, s, s / f }')$'\n'
  done
  if [[ $counts == *,* ]]; then
    printf 'devices  images each  images/s  speed-up\n%s' "$table"
  fi
  printf '%.2f images/s\n' "$speed"
}
