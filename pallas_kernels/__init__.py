"""Kernels for NVIDIA GPUs, each a replacement of a plain JAX function."""
