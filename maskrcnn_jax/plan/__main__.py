"""Entry point of `python -m maskrcnn_jax.plan`."""

from maskrcnn_jax.plan.command_line import main
from maskrcnn_jax.runtime.console import shown_log
from maskrcnn_jax.runtime.huge_pages import restart_with_huge_pages

if __name__ == '__main__':
  restart_with_huge_pages()
  with shown_log():
    main()
