r"""Trains the same Mask R-CNN here and in torchvision, and compares the two.

  python scripts/learn_beside_torchvision.py --torch_python=ENV/bin/python \
      --images=DIR --annotations=TRAIN.json --eval_images=DIR \
      --eval_annotations=VAL.json --out=OUT

ENV is another Python environment, with torch, torchvision and pycocotools. Both
programs train a ResNet-18-FPN with group norm on crops of 128 x 128 pixels, on
the CPU. They have the same initial weights, images, batches and learning rates.
Only the random choice of anchors and RoIs is each program's own. Two tests
follow:

- The sharp test compares the five losses of several batches at fixed weights,
  before and after a training, over many draws of each program's samples.
- The long test compares the losses of whole trainings with several seeds of the
  sampling, and the AP of the final models. As a control, further trainings of
  torchvision are compared with torchvision's own.

Each program evaluates all final models, its own and the converted ones of the
other. Prints tables, and writes OUT/figures.json and OUT/curves.png.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
# JAX reads this when it is imported. torchvision runs on the CPU too.
os.environ['JAX_PLATFORMS'] = 'cpu'

from learning import crops, figures, ours  # noqa: E402
import ml_collections  # noqa: E402
import numpy as np  # noqa: E402

from maskrcnn_jax.training.optimizer import make_recipe_optimizer  # noqa: E402


def torchvision_settings(
  config: ml_collections.ConfigDict, num_classes: int
) -> dict[str, Any]:
  """Returns the arguments of `torchvision_jobs.build_model` for a recipe.

  Args:
    config: The recipe.
    num_classes: Number of classes, background included.
  """
  rpn, roi = config.rpn, config.roi
  model = config.model
  return {
    'depth': model.depth,
    'norm': model.norm,
    'fpn_channels': model.fpn_channels,
    'box_features': model.box_features,
    'mask_convs': model.mask_convs,
    'mask_channels': model.mask_channels,
    'num_classes': num_classes,
    'anchor_sizes': config.anchors.sizes,
    'options': {
      'min_size': config.data.short_side,
      'max_size': config.data.long_side,
      'rpn_pre_nms_top_n_train': rpn.train.pre_nms,
      'rpn_post_nms_top_n_train': rpn.train.num_proposals,
      'rpn_pre_nms_top_n_test': rpn.eval.pre_nms,
      'rpn_post_nms_top_n_test': rpn.eval.num_proposals,
      'rpn_batch_size_per_image': rpn.num_samples,
      'rpn_positive_fraction': rpn.foreground_fraction,
      'box_batch_size_per_image': roi.num_samples,
      'box_positive_fraction': roi.foreground_fraction,
      'box_score_thresh': config.detections.min_score,
      'box_nms_thresh': config.detections.iou_threshold,
      'box_detections_per_img': config.detections.max_detections,
    },
  }


class Torchvision:
  """Runs jobs of `torchvision_jobs.py` in the environment of torchvision."""

  def __init__(self, python: str, libraries: str, folder: pathlib.Path):
    """Remembers how torchvision is started.

    Args:
      python: Python of the environment.
      libraries: Folder that is put before LD_LIBRARY_PATH; '' for none.
      folder: Folder for the file with the jobs.
    """
    self.python, self.folder = python, folder
    paths = [libraries, os.environ.get('LD_LIBRARY_PATH', '')]
    self.environment = os.environ | {
      'LD_LIBRARY_PATH': os.pathsep.join(filter(None, paths))
    }
    # The paths of this process's packages do not suit another Python.
    self.environment.pop('PYTHONPATH', None)

  def run(self, jobs: list[dict[str, Any]]) -> None:
    """Runs jobs one after the other, in one process, and waits for the end.

    Args:
      jobs: See `learning/torchvision_jobs.py`.

    Raises:
      SystemExit: If a job fails. Its output has been printed.
    """
    path = self.folder / 'jobs.json'
    path.write_text(json.dumps(jobs, default=str))
    script = HERE / 'learning' / 'torchvision_jobs.py'
    done = subprocess.run(
      [self.python, str(script), str(path)], env=self.environment, check=False
    )
    if done.returncode:
      sys.exit(f'error: {script.name} failed; its messages are above.')


def draw_order(num_images: int, num_steps: int, seed: int) -> list[list[int]]:
  """Returns the images of each batch, epoch after epoch in random order.

  Args:
    num_images: Number of training images, a multiple of `ours.BATCH_SIZE`.
    num_steps: Number of batches.
    seed: Seed of the order.
  """
  rng = np.random.default_rng(seed)
  epochs = -(-num_steps * ours.BATCH_SIZE // num_images)
  order = np.concatenate([rng.permutation(num_images) for _ in range(epochs)])
  return order.reshape(-1, ours.BATCH_SIZE)[:num_steps].tolist()


def run_programs(
  arguments: argparse.Namespace, config: ml_collections.ConfigDict
) -> None:
  """Runs both programs; they write their results to files in the folder `out`.

  Args:
    arguments: Arguments of the command line.
    config: The recipe.
  """
  out, seeds = arguments.out, arguments.seeds
  data = out / 'data'
  for part, images, annotations, count in (
    ('train', arguments.images, arguments.annotations, arguments.crops),
    (
      'val',
      arguments.eval_images,
      arguments.eval_annotations,
      arguments.eval_crops,
    ),
  ):
    crops.write_set(data, part, images, annotations, count)
  program = ours.Program(config, data, arguments.crops)
  peer = Torchvision(arguments.torch_python, arguments.torch_libraries, out)
  settings = torchvision_settings(config, len(program.categories) + 1)
  initial = out / 'initial.npz'
  common = {'settings': settings, 'data': data / 'train.npz'}

  order = draw_order(arguments.crops, config.train.num_steps, seed=0)
  schedule, _ = make_recipe_optimizer(config)
  jobs: list[dict[str, Any]] = [
    {'task': 'initialize', 'settings': settings, 'seed': 0, 'out': initial}
  ]
  # The second half of the seeds is the control.
  for seed in range(2 * seeds):
    jobs.append(
      common
      | {
        'task': 'train',
        'weights': initial,
        'order': order,
        'rates': [float(schedule(step)) for step in range(len(order))],
        'momentum': config.optimizer.momentum,
        'weight_decay': config.optimizer.weight_decay,
        'seed': seed,
        'out': out / f'torchvision_{seed}.npz',
        'out_weights': out / f'torchvision_{seed}_weights.npz',
      }
    )
  measured = draw_order(arguments.crops, arguments.batches, seed=1)
  fixed = {
    'initial': initial,
    'trained': out / 'torchvision_0_weights.npz',
  }
  for name, weights in fixed.items():
    jobs.append(
      common
      | {
        'task': 'measure',
        'weights': weights,
        'order': measured,
        'draws': arguments.draws,
        'seed': 0,
        'out': out / f'torchvision_{name}.npz',
      }
    )
  peer.run(jobs)
  for name, weights in fixed.items():
    program.measure(
      weights, measured, out / f'ours_{name}.npz', draws=arguments.draws, seed=0
    )
  program.train(initial, order, out, seeds=range(seeds))

  models = [f'torchvision_{seed}' for seed in range(2 * seeds)]
  models += [f'ours_{seed}' for seed in range(seeds)]
  peer.run(
    [
      {
        'task': 'evaluate',
        'settings': settings,
        'weights': out / f'{model}_weights.npz',
        'images': data / 'images',
        'annotations': data / 'val.json',
        'out': out / f'{model}_ap_torchvision.json',
      }
      for model in models
    ]
  )
  for model in models:
    aps = program.evaluate(out / f'{model}_weights.npz')
    (out / f'{model}_ap_ours.json').write_text(json.dumps(aps))


def main() -> None:
  """Runs both programs and prints the comparison."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  add = parser.add_argument
  add(
    '--torch_python', required=True, help="Python of torchvision's environment"
  )
  add(
    '--torch_libraries',
    default='',
    help='folder for LD_LIBRARY_PATH of that environment',
  )
  add('--images', type=pathlib.Path, required=True, help='training images')
  add('--annotations', type=pathlib.Path, required=True, help='their COCO JSON')
  add('--eval_images', type=pathlib.Path, required=True, help='held-out images')
  add(
    '--eval_annotations',
    type=pathlib.Path,
    required=True,
    help='their COCO JSON',
  )
  add('--out', type=pathlib.Path, required=True, help='folder for the results')
  add('--seeds', type=int, default=5, help='trainings of each program')
  add('--steps', type=int, default=120, help='steps of a training')
  add('--window', type=int, default=20, help='steps of a window')
  add('--crops', type=int, default=24, help='number of training images')
  add('--eval_crops', type=int, default=24, help='number of held-out images')
  add('--batches', type=int, default=12, help='batches of the sharp test')
  add('--draws', type=int, default=10, help='samples of each of these batches')
  arguments = parser.parse_args()
  if arguments.crops % ours.BATCH_SIZE:
    parser.error(f'--crops must be a multiple of {ours.BATCH_SIZE}.')
  arguments.out = arguments.out.absolute()
  arguments.out.mkdir(parents=True, exist_ok=True)
  config = ours.make_recipe(arguments.steps)
  started = time.monotonic()
  run_programs(arguments, config)
  print(f'{(time.monotonic() - started) / 60:.0f} minutes in total')
  figures.report(arguments.out, seeds=arguments.seeds, window=arguments.window)


if __name__ == '__main__':
  main()
