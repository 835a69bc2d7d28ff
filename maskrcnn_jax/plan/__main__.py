"""Entry point of `python -m maskrcnn_jax.plan`."""

from maskrcnn_jax.plan.command_line import main
from maskrcnn_jax.runtime.console import set_up_console

if __name__ == '__main__':
  set_up_console()
  main()
