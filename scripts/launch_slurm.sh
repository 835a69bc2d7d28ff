#!/usr/bin/env bash
# Trains on several machines under SLURM, one process a GPU.
#
#   sbatch --nodes=2 scripts/launch_slurm.sh --config=configs/r50_fpn.py \
#       --workdir=/shared/runs/coco [--config.KEY=VALUE ...]
#
# The arguments go to maskrcnn_jax.main, whose processes find each other by
# SLURM's variables. The workdir must be on a file system that all machines
# share. Submitted again, the same command goes on where the run stopped.
#SBATCH --job-name=maskrcnn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
# Not --gpus-per-task, which hides the other GPUs from a process: NCCL is then
# slower, for it cannot copy from GPU to GPU.
#SBATCH --gres=gpu:8
# Too few, and decoding images and NCCL's threads hold the GPUs up.
#SBATCH --cpus-per-task=8
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
source .venv/bin/activate

# One place for what is compiled, which process 0 writes and all read.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/maskrcnn_jax/compiled-gpu}

# When one process ends with an error, so do all.
exec srun --kill-on-bad-exit=1 --cpu-bind=none \
  python -m maskrcnn_jax.main "$@"
