"""Entry point of `python -m maskrcnn_jax.convert_weights`."""

from maskrcnn_jax.convert_weights.command_line import run

if __name__ == '__main__':
  run()
