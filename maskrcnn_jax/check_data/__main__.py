"""Entry point of `python -m maskrcnn_jax.check_data`."""

import sys

from maskrcnn_jax.check_data.command_line import main

if __name__ == '__main__':
  sys.exit(main())
