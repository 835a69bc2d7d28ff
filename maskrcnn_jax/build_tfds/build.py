r"""Builds a tensorflow-datasets set from COCO files, with the masks.

  python -m maskrcnn_jax.build_tfds --manual_dir=data/coco --name=2017 \
      --tfds_dir=data/tfds

Train from it with --config.data.train.tfds=coco_instances/2017
--config.data.tfds_dir=data/tfds. TensorFlow is not needed.
"""

import argparse
import pathlib
import sys

from maskrcnn_jax.config.command_line import with_underscores
from maskrcnn_jax.errors import InputError, print_error


def main() -> None:
  """Builds the set that the command line names, and prints its splits.

  An error is printed as one line. It ends the program with status 2 if the
  input is wrong, and with 1 if a file cannot be read or written.
  """
  parser = argparse.ArgumentParser(
    prog='python -m maskrcnn_jax.build_tfds',
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
  )
  parser.add_argument(
    '--manual_dir',
    type=pathlib.Path,
    required=True,
    help='folder with the JSON files (in it or in its annotations/) and\n'
    'the images (in SPLIT/, images_SPLIT/, images/SPLIT/ or images/)',
  )
  parser.add_argument(
    '--name',
    choices=('2014', '2017', 'folder'),
    default='folder',
    help='COCO 2014, COCO 2017, or any folder of COCO files (the default)',
  )
  parser.add_argument(
    '--tfds_dir',
    type=pathlib.Path,
    required=True,
    help='the folder that tensorflow-datasets keeps its sets in',
  )
  arguments = parser.parse_args(with_underscores(sys.argv[1:]))
  # The import takes a second, and --help should not wait for it.
  import tensorflow_datasets as tfds

  from maskrcnn_jax.build_tfds.coco_instances import CocoInstances, find_splits

  try:
    find_splits(arguments.manual_dir, arguments.name)
    builder = CocoInstances(
      config=arguments.name, data_dir=str(arguments.tfds_dir)
    )
    if builder.data_path.exists():
      raise InputError(
        f'The set {builder.data_path} is there already; remove it to build it '
        'anew, or give another --tfds_dir.'
      )
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        manual_dir=str(arguments.manual_dir)
      )
    )
  except InputError as error:
    print_error(str(error))
    sys.exit(2)
  except OSError as error:
    print_error(str(error))
    sys.exit(1)
  for split, info in builder.info.splits.items():
    print(f'{split}: {info.num_examples} images, {info.num_bytes:,} bytes')
  print(f'Built {builder.data_path}.')


if __name__ == '__main__':
  main()
