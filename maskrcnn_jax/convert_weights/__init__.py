"""Tool: weights of other programs become checkpoints, and back."""
