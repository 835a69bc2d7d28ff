"""Entry point of `python -m maskrcnn_jax.build_tfds`."""

from maskrcnn_jax.build_tfds.build import main

if __name__ == '__main__':
  main()
