#!/usr/bin/env bash
# Trains on several machines under SLURM, with one process for each GPU.
#
#   sbatch --nodes=2 scripts/launch_slurm.sh --config=configs/r50_fpn.py \
#       --workdir=/shared/runs/coco [--config.KEY=VALUE ...]
#
# The arguments are passed to maskrcnn_jax.main, whose processes find each other
# by SLURM's variables. The workdir must be on a file system that all machines
# share. If the same command is submitted again, the run continues where it
# stopped.
#SBATCH --job-name=maskrcnn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
# Not --gpus-per-task, which hides the other GPUs from a process: NCCL would
# then be slower, because it could not copy from GPU to GPU directly.
#SBATCH --gres=gpu:8
# With fewer CPUs, the GPUs would wait for the decoding of images and for NCCL's
# threads.
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
source .venv/bin/activate

# Folder of compiled programs, which process 0 writes and all processes read.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/maskrcnn_jax/compiled-gpu}

# If one process ends with an error, all processes end.
exec srun --kill-on-bad-exit=1 --cpu-bind=none \
  python -m maskrcnn_jax.main "$@"
