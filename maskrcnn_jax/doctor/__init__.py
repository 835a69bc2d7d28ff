"""Tool: checks a machine: its devices, versions, numbers and kernels."""
