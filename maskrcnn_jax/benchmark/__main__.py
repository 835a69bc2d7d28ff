"""Entry point of `python -m maskrcnn_jax.benchmark`."""

from maskrcnn_jax.benchmark.command_line import main

if __name__ == '__main__':
  main()
