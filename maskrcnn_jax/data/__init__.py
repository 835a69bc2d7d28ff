"""From image files and COCO JSON to batches; no JAX in here."""
