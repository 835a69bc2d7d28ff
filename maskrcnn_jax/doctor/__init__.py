"""Tool: checks the machine: devices, versions, numbers and kernels."""
