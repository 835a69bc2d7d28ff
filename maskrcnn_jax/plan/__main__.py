"""Entry point of `python -m maskrcnn_jax.plan`."""

from maskrcnn_jax.plan.command_line import main
from maskrcnn_jax.runtime.console import shown_log

if __name__ == '__main__':
  with shown_log():
    main()
