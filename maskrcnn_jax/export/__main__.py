"""Entry point of `python -m maskrcnn_jax.export`."""

from maskrcnn_jax.export.command_line import run

if __name__ == '__main__':
  run()
