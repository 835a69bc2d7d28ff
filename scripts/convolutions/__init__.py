"""The parts of `convolution_speed.py`."""
