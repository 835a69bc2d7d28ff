"""Entry point of `python -m maskrcnn_jax.benchmark`."""

from maskrcnn_jax.benchmark.command_line import main
from maskrcnn_jax.runtime.huge_pages import restart_with_huge_pages

if __name__ == '__main__':
  restart_with_huge_pages()
  main()
