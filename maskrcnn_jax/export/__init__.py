"""Tool: exports a trained model to a folder that needs only JAX and NumPy."""
