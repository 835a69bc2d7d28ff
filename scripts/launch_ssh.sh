#!/usr/bin/env bash
# Trains on several machines that are reached by ssh, one process a machine,
# each with all GPUs of its machine.
#
#   HOSTS='node1 node2' bash scripts/launch_ssh.sh --config=configs/r50_fpn.py \
#       --workdir=/shared/runs/coco [--config.KEY=VALUE ...]
#
# The arguments go to maskrcnn_jax.main. This folder, its .venv and the workdir
# must be at the same place on all machines, and node1 be reachable from the
# others by that name, at port $PORT (default 29500). When one process ends
# with an error, so do all; Ctrl-C ends all. Given again, the same command goes
# on where the run stopped.
set -euo pipefail
if [[ -z "${HOSTS:-}" || $# -eq 0 ]]; then
  echo "usage: HOSTS='node1 node2 ...' bash $0 --config=... --workdir=..." >&2
  exit 2
fi
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
read -ra hosts <<< "$HOSTS"
ssh=${SSH:-ssh}
arguments=$(printf ' %q' "$@")

processes=()
stop() { kill "${processes[@]}" 2>/dev/null || true; }
trap stop EXIT
trap 'exit 130' INT TERM
for i in "${!hosts[@]}"; do
  # -tt: when this connection ends, so does what it started.
  $ssh -tt "${hosts[$i]}" "cd $(printf '%q' "$folder") &&
    exec .venv/bin/python -m maskrcnn_jax.main$arguments \
      --coordinator=${hosts[0]}:${PORT:-29500} \
      --num_processes=${#hosts[@]} --process_id=$i" < /dev/null &
  processes+=($!)
done
# The first to fail decides.
while ((${#processes[@]})); do
  running=()
  for process in "${processes[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      running+=("$process")
    else
      wait "$process" || exit $?
    fi
  done
  processes=("${running[@]}")
  sleep 1
done
