"""Tool: says before a training what it will need: memory, time, devices."""
