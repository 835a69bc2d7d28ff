#!/usr/bin/env bash
# Starts a shell in the image maskrcnn_jax, with a data set and all GPUs.
#
#   bash scripts/docker/interactive.sh DATASET [COMMAND ...]
#
# DATASET is the folder of COCO or of your own data; in the container it is
# data/coco, where the recipes expect COCO, and cannot be changed. The folder
# $RESULTS, or else results/ in the current folder, is /results in the container.
# With a COMMAND, the container runs it instead of a shell:
#
#   bash scripts/docker/interactive.sh /data/coco bash scripts/train.sh float16
#
# The host needs an NVIDIA driver for CUDA 13 (580 or newer) and the NVIDIA
# Container Toolkit. The variable DOCKER names another program with the same
# arguments as docker. GPUS chooses GPUs: GPUS='"device=0,1"'; GPUS='' takes
# none.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/engine.sh"
(( $# )) || fail 'give the folder of the data set; see --help'
[[ -d $1 ]] || fail "$1 is not a folder"
dataset=$(cd "$1" && pwd)
shift
results=${RESULTS:-$PWD/results}
mkdir -p "$results" 2> /dev/null || fail "cannot make the folder $results"
results=$(cd "$results" && pwd)

options=(--rm --interactive)
[[ -t 0 ]] && options+=(--tty)
gpus=${GPUS-all}
[[ -n $gpus ]] && options+=(--gpus="$gpus")
# Files in /results belong to the user who gives this command. Compiled programs
# are kept there, too. Processes share memory in /dev/shm, 64 MB by default.
exec "$engine" run "${options[@]}" \
  --user="$(id -u):$(id -g)" --env=HOME=/tmp --env=USER=maskrcnn \
  --env=JAX_COMPILATION_CACHE_DIR=/results/compiled \
  --shm-size=16g --ulimit=memlock=-1 \
  --volume="$dataset:/workspace/maskrcnn_jax/data/coco:ro" \
  --volume="$results:/results" maskrcnn_jax "$@"
