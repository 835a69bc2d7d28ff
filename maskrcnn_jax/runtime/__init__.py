"""For every long run: devices, checkpoints, precision, logs, signals."""
