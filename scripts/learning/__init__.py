"""The parts of `learn_beside_torchvision.py`."""
