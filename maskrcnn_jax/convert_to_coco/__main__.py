"""Entry point of `python -m maskrcnn_jax.convert_to_coco`."""

from maskrcnn_jax.convert_to_coco.convert import main

if __name__ == '__main__':
  main()
