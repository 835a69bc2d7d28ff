"""Tool: converts weights of other programs to checkpoints, and back."""
