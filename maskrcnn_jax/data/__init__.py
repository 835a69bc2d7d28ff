"""Reads COCO annotations and image files, and makes batches, without JAX."""
