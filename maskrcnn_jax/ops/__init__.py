"""Geometry on arrays: no parameters, plain JAX, one image at a time."""
