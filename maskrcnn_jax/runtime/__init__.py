"""What every long run needs: devices, checkpoints, precision, logs, signals."""
