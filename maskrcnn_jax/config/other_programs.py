"""Writes the documentation for users of other programs.

python -m maskrcnn_jax.config.other_programs > docs/from_other_programs.md
"""

from typing import Any

from maskrcnn_jax.config.nvidia_keys import ANY, ROWS, Row

_INTRODUCTION = """\
# From other programs

Generated from the tables in `maskrcnn_jax/config/nvidia_keys.py` and
`maskrcnn_jax/config/other_programs.py` by `python -m
maskrcnn_jax.config.other_programs`.

## NVIDIA's Mask R-CNN For PyTorch

Its YAML files, and those of maskrcnn-benchmark, can be used as they are:

```
python -m maskrcnn_jax.main --config-file e2e_mask_rcnn_R_50_FPN_1x.yaml \\
    OUTPUT_DIR results SOLVER.BASE_LR 0.002 --amp
```

- The log has a line for each key, such as `SOLVER.BASE_LR 0.002 ->
  optimizer.learning_rate = 0.002`. Keys and values that have no counterpart are
  refused, all in one message. Nothing is ignored without a line.
- Keys that the file leaves out have the defaults of NVIDIA's program: box
  conventions `geometry=legacy`, the stride in the 1x1 convolution, frozen batch
  norm without epsilon. The last line lists them.
- `KEY VALUE` pairs and `--amp` may also follow a recipe of this program
  (`--config=r50_fpn SOLVER.MAX_ITER 1000`), and `TEST.*`, `DATASETS.TEST` and
  `DTYPE` an evaluation without `--config`. A pair and `--config.KEY=VALUE` that
  give a key two values are an error. `--config.KEY=VALUE` changes a value of a
  file.
- `MODEL.WEIGHT catalog://ImageNetPretrained/MSRA/R-50` is `--init_from` with
  the same name: the weights are downloaded and converted at the first use.
  `--list_weights` lists all names. For another file, the program names the
  command that converts it; `MODEL.WEIGHT FOLDER` with a converted checkpoint is
  `--init_from=FOLDER` (in an evaluation `--checkpoint=FOLDER`).
- `coco_2014_train`, `coco_2014_val`, `coco_2014_minival`,
  `coco_2014_valminusminival`, `coco_2017_train` and `coco_2017_val` are
  expected in `data/coco`. `coco_2014_minival` has the images of
  `coco_2017_val`, and `coco_2014_train` with `coco_2014_valminusminival` those
  of `coco_2017_train`; the published .377 and .342 belong to this split. Own
  sets are given by `--config.data.train.images=DIR`, `.annotations=FILE.json`
  and `config.data.eval`.
- Gradient accumulation: with `SOLVER.ACCUMULATE_GRAD True
  SOLVER.ACCUMULATE_STEPS 4`, `train.batch_size` is 4 times `IMS_PER_BATCH`,
  `train.micro_batches` is 4, and `MAX_ITER` and `CHECKPOINT_PERIOD` are divided
  by 4. Learning rate, `STEPS` and `WARMUP_ITERS` stay as they are, because
  NVIDIA's program counts them in updates of the weights.
- `MODEL.RPN.FPN_POST_NMS_TOP_N_TRAIN` is the number of proposals of all images
  of a GPU there, and `rpn.train.num_proposals` that of each image here. The
  files of NVIDIA are for 8 GPUs, and for one GPU if the batch is no multiple of
  8; the number is divided by the images of such a GPU. So 4000 with a batch of
  32 is 1000.

A YAML file can also be a recipe of this program: `maskrcnn_jax_recipe` names
the recipe, and all other keys change it.

```yaml
maskrcnn_jax_recipe: r50_fpn
train: {batch_size: 8}
optimizer.learning_rate: 0.01
```
"""

_Pairs = tuple[tuple[str, str], ...]

# (there, here), in Markdown.
_COMMANDS: _Pairs = (
  (
    '`tools/train_net.py --config-file FILE`',
    '`python -m maskrcnn_jax.main --config-file FILE --workdir DIR --init_from '
    'CHECKPOINT`',
  ),
  (
    '`python -m torch.distributed.launch --nproc_per_node=8 '
    'tools/train_net.py ...`',
    'the same command as for one GPU: one process uses all GPUs, or those in '
    '`CUDA_VISIBLE_DEVICES`',
  ),
  (
    '`tools/test_net.py --config-file FILE`',
    '`python -m maskrcnn_jax.main --mode eval --workdir DIR`; the recipe is '
    'stored in the checkpoint',
  ),
  ('`--config-file`, `--config_file`', 'the same, or `--config`'),
  ('`--skip-test`', 'the same, also `--skip_test`'),
  (
    '`--skip-eval`',
    'the same with `--mode eval`; writes `inference/bbox.json` and `segm.json`',
  ),
  ('`--amp`, `--fp16`', 'the same: `precision=fp16`'),
  ('`--opts KEY VALUE ...`, `KEY VALUE ...`', 'the same'),
  ('`--max_steps N`', '`SOLVER.MAX_ITER N`'),
  (
    '`--infer_steps N`, `--skip_checkpoint`',
    'no counterpart; `python -m maskrcnn_jax.benchmark` measures the speed',
  ),
  (
    '`--json-summary FILE`',
    '`metrics.jsonl`, the events for TensorBoard and '
    '`inference/coco_results.json` in the workdir',
  ),
  ('`--local_rank`', '`--process_id`, which launchers set themselves'),
  (
    '`train.sh`, `eval.sh`, `inference.sh`, `train_benchmark.sh`, '
    '`inference_benchmark.sh`, `docker/build.sh`, `docker/interactive.sh`',
    'the scripts of the same names',
  ),
  (
    '`download_dataset.sh`, `verify_dataset.sh`, `extract_dataset.sh`',
    '`scripts/download_dataset.sh DIR [2014]` and the others; without a year '
    'they take COCO 2017',
  ),
  (
    '`DATASETS` in `paths_catalog.py`',
    '`--config.data.train.images=DIR`, `--config.data.train.annotations='
    'FILE.json`, and the same with `eval`',
  ),
  (
    '`model_0002500.pth`, `model_final.pth`, `last_checkpoint`',
    '`checkpoints/2500`, the newest of `checkpoints/`, `last_checkpoint`',
  ),
)

# (README of NVIDIA's program, its code, this program).
_DISAGREEMENTS = (
  ('an anchor is background below an IoU of 0.5', '0.3', '0.3'),
  (
    'the smaller side is between 800 and 1333 pixels',
    'the shorter side becomes 800, the longer at most 1333 pixels',
    'as the code',
  ),
  (
    'flag `--config_file`',
    '`--config-file`',
    'both',
  ),
  ('flag `--opts`', 'the pairs alone', 'with and without `--opts`'),
  (
    'the log is in the directory `OUTPUT_DIR/log`',
    'the file `OUTPUT_DIR/log.txt`',
    'the file `WORKDIR/log.txt`',
  ),
  (
    '`inference.sh` writes `bbox.json` and `segm.json`',
    'with `--skip-eval` only `predictions.pth`',
    'both JSON files, with and without `--skip-eval`',
  ),
  (
    'training ends at accuracies given on the command line',
    'as pairs, `PER_EPOCH_EVAL True MIN_BBOX_MAP 0.377 MIN_MASK_MAP 0.342`',
    'the same pairs',
  ),
  (
    'the default configuration has 30,000 steps',
    '`MAX_ITER` 40,000; 30,000 is the step of the decay',
    'as the code, for a YAML file that does not set it',
  ),
  (
    '`e2e_mask_rcnn_R_50_FPN_1x.yaml`: batch 16, 90,000 steps',
    'batch 32 and 45,000 steps in 2020, batch 96 and 16,667 steps in 2022',
    'the file that is given; the recipe `r50_fpn` is batch 16',
  ),
  (
    'from a batch of 32 on, warm up for 625 steps from a factor of 0.01',
    'the file for batch 32 sets neither, so 500 steps from a third',
    'a YAML file as it is written; give the pairs `SOLVER.WARMUP_ITERS 625 '
    'SOLVER.WARMUP_FACTOR 0.01`',
  ),
  (
    'a batch of 64 by 4 steps of accumulation, with nothing else changed',
    'the decay counts updates, so it is never reached',
    'as the code; the log names the steps that keep the decay',
  ),
)

# (key of detectron2, counterpart).
_DETECTRON2: _Pairs = (
  ('`SOLVER.IMS_PER_BATCH`', '`train.batch_size`'),
  ('`SOLVER.REFERENCE_WORLD_SIZE`', '`train.reference_batch_size`'),
  ('`SOLVER.BASE_LR`', '`optimizer.learning_rate`'),
  ('`SOLVER.MAX_ITER`', '`train.num_steps`'),
  ('`SOLVER.STEPS`, `GAMMA`', '`optimizer.decay_steps`, `decay_factor`'),
  (
    '`SOLVER.WARMUP_ITERS`, `WARMUP_FACTOR`',
    '`optimizer.warmup_steps`, `warmup_factor`',
  ),
  ('`SOLVER.BIAS_LR_FACTOR`', '`optimizer.bias_rate_factor`'),
  ('`SOLVER.CLIP_GRADIENTS`', '`optimizer.clip_norm`'),
  ('`SOLVER.AMP.ENABLED`', '`precision`'),
  ('`SOLVER.CHECKPOINT_PERIOD`', '`train.checkpoint_every`'),
  ('`TEST.EVAL_PERIOD`', '`train.eval_every`'),
  ('`TEST.DETECTIONS_PER_IMAGE`', '`detections.max_detections`'),
  ('`INPUT.MIN_SIZE_TRAIN`', '`data.short_sides`'),
  (
    '`INPUT.MIN_SIZE_TEST`, `MAX_SIZE_TEST`',
    '`data.short_side`, `long_side`, `padded_sizes`',
  ),
  (
    '`MODEL.PIXEL_MEAN`, `PIXEL_STD` (BGR)',
    '`data.pixel_mean`, `data.pixel_std` (RGB)',
  ),
  ('`MODEL.WEIGHTS`', '`--init_from`, `--checkpoint`'),
  ('`MODEL.MASK_ON`', '`model.output`'),
  ('`MODEL.RESNETS.DEPTH`', '`model.depth`'),
  (
    '`MODEL.RESNETS.NUM_GROUPS`, `WIDTH_PER_GROUP`',
    '`model.groups`, `group_width`',
  ),
  ('`MODEL.RESNETS.STRIDE_IN_1X1`', '`model.stride_in_1x1`'),
  ('`MODEL.RESNETS.NORM`', '`model.norm`'),
  ('`MODEL.BACKBONE.FREEZE_AT`', '`freeze_at`'),
  (
    '`MODEL.ANCHOR_GENERATOR.SIZES`, `ASPECT_RATIOS`',
    '`anchors.sizes`, `anchors.ratios`',
  ),
  (
    '`MODEL.RPN.PRE_NMS_TOPK_TRAIN`, `POST_NMS_TOPK_TRAIN`',
    '`rpn.train.pre_nms`, `rpn.train.num_proposals`',
  ),
  ('`MODEL.ROI_HEADS.SCORE_THRESH_TEST`', '`detections.min_score`'),
  ('`MODEL.ROI_HEADS.NMS_THRESH_TEST`', '`detections.iou_threshold`'),
  (
    '`MODEL.ROI_HEADS.NUM_CLASSES`',
    'the categories of the annotations',
  ),
  (
    '`DATASETS.TRAIN`, `TEST`',
    '`data.train.images`, `data.train.annotations`, `data.eval.images`, '
    '`data.eval.annotations`',
  ),
  ('`OUTPUT_DIR`', '`--workdir`'),
)

# (option of references/detection/train.py or of the model, counterpart).
_TORCHVISION: _Pairs = (
  (
    '`--data-path`',
    '`data.train.images`, `data.train.annotations`, `data.eval.images`, '
    '`data.eval.annotations`',
  ),
  ('`--batch-size` (of a GPU)', '`train.batch_size` (of all GPUs)'),
  ('`--epochs`', '`train.num_steps` (images / batch size for each epoch)'),
  (
    '`--lr`, `--momentum`, `--weight-decay`',
    '`optimizer.learning_rate`, `momentum`, `weight_decay`',
  ),
  (
    '`--norm-weight-decay`',
    'no counterpart: the scales of group norm have `optimizer.weight_decay`, '
    'and frozen batch norm is not trained',
  ),
  (
    '`--lr-steps`, `--lr-gamma`',
    '`optimizer.decay_steps`, `decay_factor`',
  ),
  ('`--lr-scheduler cosineannealinglr`', '`optimizer.schedule=cosine`'),
  (
    '`--data-augmentation lsj` or `multiscale`',
    '`data.scale_jitter=(0.1,2.0)` or `data.short_sides`',
  ),
  ('`--workers`', '`data.num_workers`'),
  ('`--amp`', 'the same: `precision=fp16`'),
  ('`--output-dir`', '`--workdir`'),
  ('`--resume FILE`', 'give the same `--workdir` again'),
  ('`--test-only`', '`--mode=eval`'),
  ('`--weights`, `--weights-backbone`', '`--init_from`, `--checkpoint`'),
  ('`--trainable-backbone-layers N`', '`freeze_at` = 5 - N'),
  ('`--print-freq`', '`train.log_every`'),
  ('`min_size`, `max_size`', '`data.short_side`, `data.long_side`'),
  (
    '`image_mean`, `image_std` (in [0, 1])',
    '`data.pixel_mean`, `data.pixel_std` (in [0, 255])',
  ),
  (
    '`rpn_pre_nms_top_n_train`, `rpn_post_nms_top_n_train`',
    '`rpn.train.pre_nms`, `rpn.train.num_proposals`',
  ),
  (
    '`rpn_fg_iou_thresh`, `rpn_bg_iou_thresh`',
    '`rpn.foreground_iou`, `rpn.background_iou`',
  ),
  ('`rpn_batch_size_per_image`', '`rpn.num_samples`'),
  ('`box_batch_size_per_image`', '`roi.num_samples`'),
  ('`box_score_thresh`', '`detections.min_score`'),
  ('`box_nms_thresh`', '`detections.iou_threshold`'),
  ('`box_detections_per_img`', '`detections.max_detections`'),
)


def as_markdown() -> str:
  """Returns the text of docs/from_other_programs.md."""
  parts = [
    _INTRODUCTION,
    '### Commands\n',
    _table(('there', 'here'), _COMMANDS),
    '### Where its README and its code disagree\n',
    _table(('README', 'code', 'here'), _DISAGREEMENTS),
    '### Keys\n',
    _table(('key', 'default', 'here', 'remarks'), tuple(map(_cells, ROWS))),
    '## detectron2\n\nA YAML file of detectron2 is not translated; the program '
    'names the nearest recipe.\n',
    _table(('detectron2', 'here'), _DETECTRON2),
    "## torchvision's references\n",
    _table(('torchvision', 'here'), _TORCHVISION),
  ]
  return '\n'.join(parts)


def _cells(row: Row) -> tuple[str, str, str, str]:
  """Returns the cells of a key: name, default, counterpart and remarks."""
  default = '' if row.default is None else f'`{_written(row.default)}`'
  remarks = row.note
  if row.keys:
    here = ', '.join(f'`{key}`' for key in row.keys)
  elif row.accepted is not ANY and not row.file_only:
    here = 'the same'
  else:
    here = 'nothing to set'
  if row.accepted is not ANY:
    values = ' or '.join(f'`{_written(value)}`' for value in row.accepted)
    remarks = f'only {values}' + (f': {remarks}' if remarks else '')
  return f'`{row.name}`', default, here, remarks


def _written(value: Any) -> str:
  """Returns a value as it is written in a YAML file."""
  if isinstance(value, float):
    return f'{value:.7g}'
  if isinstance(value, tuple):
    comma = ',' if len(value) == 1 else ''
    return f'({", ".join(map(_written, value))}{comma})'
  return str(value) if value != '' else "''"


def _table(head: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
  """Returns a table in Markdown, with an empty line after it."""
  lines = [head, ('---',) * len(head), *rows]
  return ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)


if __name__ == '__main__':
  print(as_markdown(), end='')
