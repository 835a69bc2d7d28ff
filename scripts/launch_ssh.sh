#!/usr/bin/env bash
# Trains on several machines that are reached by ssh. Each machine runs one
# process, which uses all GPUs of the machine.
#
#   HOSTS='node1 node2' bash scripts/launch_ssh.sh --config=configs/r50_fpn.py \
#       --workdir=/shared/runs/coco [--config.KEY=VALUE ...]
#
# The arguments are passed to maskrcnn_jax.main. This folder, its .venv and the
# workdir must be in the same place on all machines. The other machines must
# reach node1 by that name at port $PORT (default 29500). If one process ends
# with an error, all processes end; Ctrl-C ends all of them, too. If the same
# command is run again, the run continues where it stopped.
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
  # -tt: the remote process ends when this connection ends.
  $ssh -tt "${hosts[$i]}" "cd $(printf '%q' "$folder") &&
    exec .venv/bin/python -m maskrcnn_jax.main$arguments \
      --coordinator=${hosts[0]}:${PORT:-29500} \
      --num_processes=${#hosts[@]} --process_id=$i" < /dev/null &
  processes+=($!)
done
# Waits for all processes. The exit status is that of the first process that
# fails.
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
