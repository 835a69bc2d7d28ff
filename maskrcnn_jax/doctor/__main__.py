"""Entry point of `python -m maskrcnn_jax.doctor`."""

import sys

from maskrcnn_jax.doctor.machine_check import main

if __name__ == '__main__':
  sys.exit(main())
