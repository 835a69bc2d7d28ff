"""Answers to option names of other programs, such as --lr or SOLVER.BASE_LR.

The names are from ultralytics, detectron2, maskrcnn-benchmark, torchvision's
references and mmdetection. Users type them as options (--lr=0.01), as keys
(--config.lr=0.01) and as pairs (SOLVER.BASE_LR 0.01).
"""

# {names: answer}. An answer is a clause that names the key of this program or
# another remedy; the message puts it after a colon. Names are in lower case,
# with underscores in place of hyphens.
# The formatter is off because many names share an answer, and with each name on
# a line of its own the answers would be hard to find.
# fmt: off
_ANSWERS = {
    (
        'lr', 'lr0', 'base_lr', 'learning_rate', 'solver.base_lr',
        'optimizer.lr', 'optim_wrapper.optimizer.lr',
    ): 'give --config.optimizer.learning_rate=RATE',
    (
        'momentum', 'solver.momentum',
    ): 'give --config.optimizer.momentum=NUMBER',
    (
        'weight_decay', 'wd', 'solver.weight_decay',
    ): 'give --config.optimizer.weight_decay=NUMBER',
    (
        'optimizer', 'optim', 'solver.optimizer',
        'optim_wrapper.optimizer.type',
    ): 'give --config.optimizer.name=sgd or adamw',
    (
        'warmup', 'warmup_iters', 'warmup_steps', 'warmup_epochs',
        'solver.warmup_iters', 'solver.warmup_steps',
    ): 'give --config.optimizer.warmup_steps=STEPS',
    (
        'solver.warmup_factor', 'warmup_factor', 'warmup_ratio',
    ): 'give --config.optimizer.warmup_factor=NUMBER',
    (
        'solver.bias_lr_factor', 'bias_lr_factor',
    ): 'give --config.optimizer.bias_rate_factor=NUMBER',
    (
        'solver.steps', 'lr_steps', 'milestones', 'decay_steps',
    ): "give --config.optimizer.decay_steps='(STEP, STEP)'",
    (
        'solver.gamma', 'gamma', 'lr_gamma',
    ): 'give --config.optimizer.decay_factor=NUMBER',
    (
        'lr_scheduler', 'cos_lr', 'solver.lr_scheduler_name', 'scheduler',
    ): 'give --config.optimizer.schedule=multistep or cosine',
    (
        'clip_grad', 'clip_grad_norm', 'grad_clip', 'gradient_clip_val',
        'solver.clip_gradients.clip_value', 'solver.clip_gradients.enabled',
    ): 'give --config.optimizer.clip_norm=NUMBER',
    (
        'epochs', 'epoch', 'max_epochs', 'num_epochs', 'train_cfg.max_epochs',
        'runner.max_epochs', 'total_epochs',
    ): (
        'training is counted in steps: give --config.train.num_steps=STEPS, '
        'where an epoch is the number of training images divided by '
        'config.train.batch_size'
    ),
    (
        'solver.max_iter', 'max_iter', 'max_iters', 'iters', 'iterations',
        'max_steps', 'num_steps', 'steps', 'train_cfg.max_iters',
    ): 'give --config.train.num_steps=STEPS',
    (
        'patience', 'early_stopping', 'early_stop',
    ): (
        'a training does not end for lack of progress, and WORKDIR/best keeps '
        'the best checkpoint: leave the option out; '
        '--config.train.min_box_ap=AP with --config.train.eval_every=STEPS '
        'ends the training when an AP is reached'
    ),
    (
        'batch', 'batch_size', 'solver.ims_per_batch', 'ims_per_batch',
        'samples_per_gpu', 'data.samples_per_gpu', 'images_per_gpu',
        'train_dataloader.batch_size', 'bs',
    ): (
        'give --config.train.batch_size=IMAGES, the number on all devices '
        'together (for an evaluation --config.eval.batch_size=IMAGES)'
    ),
    (
        'test.ims_per_batch', 'val_dataloader.batch_size',
    ): 'give --config.eval.batch_size=IMAGES',
    (
        'imgsz', 'img_size', 'image_size', 'img_scale', 'input_size',
        'min_size', 'max_size', 'input.min_size_train', 'input.max_size_train',
        'input.min_size_test', 'input.max_size_test', 'min_size_train',
        'max_size_train',
    ): (
        'give --config.data.short_side=PIXELS, --config.data.long_side=PIXELS '
        "and --config.data.padded_sizes='((HEIGHT, WIDTH), ...)'"
    ),
    (
        'num_classes', 'nc', 'model.roi_heads.num_classes', 'n_classes',
        'model.roi_box_head.num_classes', 'model.num_classes', 'classes',
    ): (
        'the number of classes comes from the categories of the annotations: '
        'leave the option out'
    ),
    (
        'workers', 'num_workers', 'dataloader.num_workers', 'workers_per_gpu',
        'data.workers_per_gpu',
    ): 'give --config.data.num_workers=PROCESSES',
    (
        'device', 'devices', 'gpu', 'gpus', 'gpu_ids', 'gpu_id', 'num_gpus',
        'model.device', 'nproc_per_node', 'accelerator',
    ): (
        'all GPUs are used: leave the option out; the environment variable '
        'CUDA_VISIBLE_DEVICES=0 chooses one GPU, JAX_PLATFORMS=cpu the CPU'
    ),
    ('mesh',): 'all devices are always used: leave the option out',
    (
        'model.weights', 'model.weight', 'weights', 'weight', 'pretrained',
        'load_from', 'weights_backbone', 'ckpt', 'checkpoint_path',
    ): (
        'give --init_from=CHECKPOINT to train from weights, '
        '--checkpoint=CHECKPOINT to evaluate or predict; python -m '
        'maskrcnn_jax.convert_weights converts weights of other programs'
    ),
    (
        'resume_from', 'auto_resume',
    ): (
        'a training continues from the newest checkpoint of --workdir: leave '
        'the option out'
    ),
    (
        'output_dir', 'out_dir', 'output', 'project', 'work_dir', 'save_dir',
        'log_dir', 'logdir',
    ): 'give --workdir=DIR',
    (
        'datasets.train', 'data', 'data_path', 'data_root', 'dataset',
        'data_dir', 'train_dataset', 'data.root',
    ): (
        'give --config.data.train.images=DIR and '
        '--config.data.train.annotations=FILE.json, and for the evaluation '
        '--config.data.eval.images=DIR and '
        '--config.data.eval.annotations=FILE.json'
    ),
    (
        'datasets.test', 'datasets.val', 'val_dataset', 'test_dataset',
    ): (
        'give --config.data.eval.images=DIR and '
        '--config.data.eval.annotations=FILE.json'
    ),
    (
        'config_file', 'cfg', 'cfg_file', 'recipe',
    ): 'give --config=RECIPE',
    ('model',): 'give --config=RECIPE; its keys model.* describe the network',
    (
        'cfg_options', 'opts', 'set',
    ): 'give --config.KEY=VALUE for each key',
    (
        'eval_only', 'test_only', 'eval', 'evaluate', 'val', 'test',
    ): 'give --mode=eval',
    (
        'source', 'img', 'image', 'input_dir',
    ): 'give --mode=predict --input=FILE, a folder or a glob',
    (
        'conf', 'conf_thres', 'score_thr', 'score_threshold',
        'box_score_thresh',
        'confidence_threshold', 'model.roi_heads.score_thresh_test',
    ): (
        'give --config.detections.min_score=SCORE (for drawing in pictures '
        '--config.predict.min_score=SCORE)'
    ),
    (
        'iou', 'iou_thres', 'nms_thresh', 'box_nms_thresh',
        'model.roi_heads.nms_thresh_test', 'model.roi_heads.nms',
    ): 'give --config.detections.iou_threshold=IOU',
    (
        'max_det', 'max_per_img', 'test.detections_per_image',
        'box_detections_per_img',
    ): 'give --config.detections.max_detections=NUMBER',
    (
        'dtype', 'amp', 'half', 'fp16', 'bf16', 'use_amp', 'solver.amp.enabled',
    ): 'give --config.precision=bf16 or fp16, tf32, fp32',
    ('seed', 'manual_seed', 'random_seed'): 'give --config.seed=NUMBER',
    (
        'freeze', 'model.backbone.freeze_at', 'frozen_stages',
        'model.backbone.freeze_conv_body_at', 'trainable_backbone_layers',
        'trainable_layers', 'model.backbone.frozen_stages',
    ): 'give --config.freeze_at=STAGES',
    ('backbone', 'arch'): 'give --config.model.backbone=NAME',
    ('model.resnets.depth',): 'give --config.model.depth=LAYERS',
    ('model.mask_on',): 'give --config.model.output=masks or boxes',
    (
        'model.anchor_generator.sizes', 'model.rpn.anchor_sizes',
        'anchor_sizes',
    ): "give --config.anchors.sizes='((SIZE,), ...)', a tuple for each level",
    (
        'model.anchor_generator.aspect_ratios', 'model.rpn.aspect_ratios',
        'aspect_ratios', 'anchor_ratios',
    ): "give --config.anchors.ratios='(RATIO, ...)', height over width",
    ('model.pixel_mean', 'pixel_mean', 'input.pixel_mean'): (
        "give --config.data.pixel_mean='(RED, GREEN, BLUE)' in [0, 255]"
    ),
    ('model.pixel_std', 'pixel_std', 'input.pixel_std'): (
        "give --config.data.pixel_std='(RED, GREEN, BLUE)' in [0, 255]"
    ),
    ('ema', 'model_ema', 'model_ema_decay'): (
        'give --config.train.ema_decay=NUMBER'
    ),
    (
        'solver.checkpoint_period', 'checkpoint_period', 'save_period',
        'save_freq', 'checkpoint_interval',
    ): 'give --config.train.checkpoint_every=STEPS',
    (
        'val_interval', 'eval_period', 'test.eval_period', 'eval_interval',
        'train_cfg.val_interval', 'evaluation.interval',
    ): 'give --config.train.eval_every=STEPS',
    ('log_period', 'log_interval', 'print_freq', 'log_config.interval'): (
        'give --config.train.log_every=STEPS'
    ),
    ('accumulate', 'gradient_accumulation_steps', 'accumulate_grad_batches'): (
        'give --config.train.micro_batches=NUMBER'
    ),
    ('fliplr', 'flip_prob', 'input.random_flip', 'hflip_prob'): (
        'give --config.data.flip_probability=NUMBER'
    ),
    ('hsv_h', 'hsv_s', 'hsv_v'): (
        "give --config.data.color_jitter='(BRIGHTNESS, CONTRAST, SATURATION)'"
    ),
    ('mosaic', 'mixup', 'copy_paste'): (
        'there is no such augmentation: leave the option out; the keys for '
        'augmentation are config.data.short_sides, scale_jitter, '
        'flip_probability and color_jitter'
    ),
}
# fmt: on
_ANSWER_OF_NAME = {
  name: answer for names, answer in _ANSWERS.items() for name in names
}
# {beginning of a key of detectron2 and maskrcnn-benchmark: answer}, for the
# keys that have no answer of their own.
_ANSWER_OF_PREFIX = {
  'SOLVER.': 'the keys here are config.optimizer.* and config.train.*',
  'INPUT.': 'the keys here are config.data.*',
  'DATASETS.': 'the keys here are config.data.train.* and config.data.eval.*',
  'DATALOADER.': 'the keys here are config.data.*',
  'TEST.': (
    'the keys here are config.eval.* and config.detections.*, with --mode=eval'
  ),
  'MODEL.': (
    'the keys here are config.model.*, config.anchors.*, config.rpn.*, '
    'config.roi.* and config.detections.*'
  ),
}


def answer_to(name: str) -> str | None:
  """Returns the advice for an option name of another program.

  Args:
    name: An option such as '--lr=0.1', a key such as 'config.lr' or
      'SOLVER.BASE_LR', or a positional argument. Leading dashes, 'config.', a
      value after '=' and, except in the names of groups such as 'SOLVER.', the
      case of letters do not matter.

  Returns:
    A clause that names the key of this program or another remedy, such as 'give
    --config.optimizer.learning_rate=RATE'; `None` if the name is not known.
  """
  name = name.lstrip('-').removeprefix('config.').partition('=')[0]
  answer = _ANSWER_OF_NAME.get(name.lower().replace('-', '_'))
  if answer:
    return answer
  return next(
    (
      text
      for prefix, text in _ANSWER_OF_PREFIX.items()
      if name.startswith(prefix)
    ),
    None,
  )
