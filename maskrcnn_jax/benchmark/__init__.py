"""Tool: times the training step, inference or the loading of data."""
