"""Entry point of `python -m maskrcnn_jax.doctor`."""

from maskrcnn_jax.doctor.machine_check import main

if __name__ == '__main__':
  main()
