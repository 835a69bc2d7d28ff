"""Tool: times a training step, inference, or the loading of data."""
