"""Kernels for NVIDIA GPUs, each a drop-in for a plain JAX function."""
