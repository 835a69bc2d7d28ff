"""Mask R-CNN in JAX and Flax: train, evaluate and predict instance masks."""

__version__ = '0.1.0'
