"""Tests of the arguments --config and --config.KEY, in every program.

Also tests the answers to option names of other programs.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from maskrcnn_jax.config import default_config
from maskrcnn_jax.config.command_line import (
  apply_overrides,
  parse_overrides,
  refuse_unexpected,
  split_arguments,
)
from maskrcnn_jax.config.defaults import set_value, value_of
from maskrcnn_jax.config.foreign_names import (
  _ANSWER_OF_PREFIX,
  _ANSWERS,
  answer_to,
)
from maskrcnn_jax.config.keys import BY_NAME
from maskrcnn_jax.config.yaml_recipe import read_given
from maskrcnn_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  ('arguments', 'path', 'overrides', 'others'),
  [
    ('', None, [], ''),
    ('--config=a.py', 'a.py', [], ''),
    ('--config a.py --workdir=x', 'a.py', [], '--workdir=x'),
    ('-config=a.py -config b.py:1', 'b.py:1', [], ''),
    ('--config=', None, [], ''),
    ('--config.seed=3', None, [('seed', '3')], ''),
    ('--config.seed 3 x', None, [('seed', '3')], 'x'),
    ('-config.seed -3', None, [('seed', '-3')], ''),
    ('--config.seed --workdir=x', None, [('seed', None)], '--workdir=x'),
    (
      '--config.data.keep_empty --workdir x',
      None,
      [('data.keep_empty', None)],
      '--workdir x',
    ),
    (
      '--config.data.keep_empty stray',
      None,
      [('data.keep_empty', None)],
      'stray',
    ),
    ('--config.data.keep_empty true', None, [('data.keep_empty', 'true')], ''),
    ('--noconfig.data.keep_empty', None, [('data.keep_empty', 'False')], ''),
    (
      '--config.data.train.images 2017',
      None,
      [('data.train.images', '2017')],
      '',
    ),
    (
      '--config.data.train.images=a=b',
      None,
      [('data.train.images', 'a=b')],
      '',
    ),
    ('--configs --noconfig', None, [], '--configs --noconfig'),
    ('--a -- --config=b', None, [], '--a -- --config=b'),
    # As in NVIDIA's program.
    ('--config_file=a.yaml', 'a.yaml', [], ''),
    ('--config-file a.yaml --skip-test', 'a.yaml', [], '--skip_test'),
    ('-config_file a.yaml', 'a.yaml', [], ''),
    (
      '--config=a SOLVER.BASE_LR 0.1 DTYPE float16',
      'a',
      [('SOLVER.BASE_LR', '0.1'), ('DTYPE', 'float16')],
      '',
    ),
    (
      '--opts MODEL.BACKBONE.FREEZE_CONV_BODY_AT -1 --workdir=x',
      None,
      [('MODEL.BACKBONE.FREEZE_CONV_BODY_AT', '-1')],
      '--workdir=x',
    ),
    # The flag overrides DTYPE, wherever it is.
    (
      '--amp DTYPE tf32 --config.seed=3',
      None,
      [('DTYPE', 'tf32'), ('seed', '3'), ('DTYPE', 'float16')],
      '',
    ),
    ('--fp16', None, [('DTYPE', 'float16')], ''),
    # Only the names of flags change.
    ('--a-b=c-d --e-f g-h -i-j', None, [], '--a_b=c-d --e_f g-h -i-j'),
    ('-- --a-b', None, [], '-- --a-b'),
    ('--workdir RESULTS', None, [], '--workdir RESULTS'),
  ],
)
def test_split_arguments(arguments, path, overrides, others):
  assert split_arguments(arguments.split()) == (path, overrides, others.split())


@pytest.mark.parametrize('key', ['seed', 'data.train.images'])
def test_only_a_switch_can_be_negated(key):
  with pytest.raises(InputError, match=f'give --config.{key}=VALUE'):
    split_arguments([f'--noconfig.{key}'])


def test_a_pair_needs_a_value():
  message = 'SOLVER.BASE_LR needs a value: SOLVER.BASE_LR VALUE'
  with pytest.raises(InputError, match=message):
    split_arguments(['SOLVER.BASE_LR'])
  with pytest.raises(InputError, match=message):
    read_given([('SOLVER.BASE_LR', None)])


@pytest.mark.parametrize(
  ('arguments', 'values'),
  [
    ('--config.data.keep_empty', {'data.keep_empty': True}),
    ('--config.data.keep_empty=true', {'data.keep_empty': True}),
    ('--config.data.keep_empty=True', {'data.keep_empty': True}),
    ('--config.data.keep_empty 1', {'data.keep_empty': True}),
    ('--config.data.keep_empty=0', {'data.keep_empty': False}),
    ('--noconfig.data.keep_empty', {'data.keep_empty': False}),
    ('--config.data.train.images=2017', {'data.train.images': '2017'}),
    ('--config.optimizer.learning_rate=1', {'optimizer.learning_rate': 1.0}),
    ('--config.seed=1 --config.seed=2', {'seed': 2}),
    ('--config.data.padded_sizes=64,96', {'data.padded_sizes': (64, 96)}),
    ('--config.roi.sampling_ratio=None', {'roi.sampling_ratio': None}),
  ],
)
def test_values_are_parsed_by_the_form_of_the_key(arguments, values):
  _, overrides, _ = split_arguments(arguments.split())
  assert parse_overrides(overrides) == values


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('--config.train.num_steps', '--config.train.num_steps=VALUE'),
    ('--config.train.num_steps=abc', '=abc: give a whole number.'),
    ('--config.data.keep_empty=perhaps', '=perhaps: give True or False.'),
    ('--noconfig.data.keep_empty=1', 'sets False and takes no value'),
    ('--config.train.batchsize=1', 'did you mean --config.train.batch_siz'),
    ('--config.learning_rate=1', 'give --config.optimizer.learning_rate'),
    ('--config.lr=1', 'give --config.optimizer.learning_rate=RATE.'),
    ('--config.mesh=1', 'all devices are always used: leave the option out.'),
    ('--config.rpn=1', 'is a group of keys. Give one key of the group'),
    ('--config.anchors.ratios[0]=1', "--config.anchors.ratios='(...)'"),
    ('--config.zzz=1', "There is no config key 'zzz'."),
    ('--config.seed=None', 'does not leave this key open'),
  ],
)
def test_a_wrong_override_is_explained_in_one_line(argument, message):
  with pytest.raises(InputError, match=r'^C05: [^\n]*' + re.escape(message)):
    _, overrides, _ = split_arguments([argument])
    apply_overrides(default_config(), parse_overrides(overrides))


def test_none_is_for_a_key_that_the_recipe_leaves_open():
  config = default_config()
  set_value(config, 'train.num_steps', None)
  apply_overrides(config, parse_overrides([('train.num_steps', 'None')]))
  assert config.train.num_steps is None


@pytest.mark.parametrize(
  ('name', 'key'),
  [
    ('lr', 'optimizer.learning_rate'),
    ('lr0', 'optimizer.learning_rate'),
    ('SOLVER.BASE_LR', 'optimizer.learning_rate'),
    ('lr0=0.1', 'optimizer.learning_rate'),
    ('--batch-size=3', 'train.batch_size'),
    ('SOLVER.IMS_PER_BATCH', 'train.batch_size'),
    ('epochs', 'train.num_steps'),
    ('SOLVER.MAX_ITER', 'train.num_steps'),
    ('SOLVER.STEPS', 'optimizer.decay_steps'),
    ('SOLVER.NO_SUCH', 'optimizer.*'),
    ('TEST.NO_SUCH', 'eval.*'),
    ('imgsz', 'data.short_side'),
    ('INPUT.MIN_SIZE_TRAIN', 'data.short_side'),
    ('workers', 'data.num_workers'),
    ('weight_decay', 'optimizer.weight_decay'),
    ('momentum', 'optimizer.momentum'),
    ('DATASETS.TRAIN', 'data.train.annotations'),
    ('DTYPE', 'precision'),
    ('patience', 'train.min_box_ap'),
  ],
)
def test_names_of_other_programs_are_answered_with_a_key(name, key):
  assert f'config.{key}' in answer_to(name)


@pytest.mark.parametrize(
  ('name', 'answer'),
  [
    ('num_classes', 'comes from the categories'),
    ('nc', 'comes from the categories'),
    ('MODEL.ROI_HEADS.NUM_CLASSES', 'comes from the categories'),
    ('device', 'CUDA_VISIBLE_DEVICES'),
    ('OUTPUT_DIR', '--workdir=DIR'),
    ('MODEL.WEIGHTS', '--init_from=CHECKPOINT'),
  ],
)
def test_names_of_other_programs_are_answered_with_a_remedy(name, answer):
  assert answer in answer_to(name)


def test_answers_name_keys_and_flags_that_exist():
  flags = (ROOT / 'maskrcnn_jax' / 'main_flags.py').read_text()
  for text in (*_ANSWERS.values(), *_ANSWER_OF_PREFIX.values()):
    for name in re.findall(r'config\.([a-z_0-9.]+[a-z_0-9])(?![.*a-z])', text):
      assert name in BY_NAME or name.isupper(), text
    for flag in re.findall(r'--([a-z_]+)', text):
      assert f"'{flag}'" in flags or flag == 'config', text


def test_an_argument_that_no_program_has_is_refused():
  refuse_unexpected([])
  with pytest.raises(InputError, match="^Unexpected argument 'stray'"):
    refuse_unexpected(['stray', '--lr=3'])
  with pytest.raises(InputError, match='^There is no option SOLVER.GAMMA: giv'):
    refuse_unexpected(['SOLVER.GAMMA', '0.1'])


def test_a_default_is_a_value_of_its_key():
  config = default_config()
  for name in BY_NAME:
    set_value(config, name, value_of(default_config(), name))
  assert config == default_config()


def program(tool, *arguments):
  """Runs a tool of the package in a process of its own."""
  return subprocess.run(
    [sys.executable, '-m', f'maskrcnn_jax.{tool}', *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )


@pytest.mark.parametrize(
  'arguments',
  [
    '--config.data.keep_empty=true --config.lr=0.1',
    '--config.data.keep_empty --config.data.train.images 2017 --lr=0.1',
    '--noconfig.data.keep_empty --base-lr=0.1',
    '--opts DATALOADER.NUM_WORKERS 0 --config.learning_rate=3',
  ],
)
@pytest.mark.parametrize(
  'tool',
  [
    'main --workdir=none',
    'check_data --images=none --annotations=none.json',
    'benchmark --mode=train',
    'plan',
  ],
)
def test_programs_read_overrides_alike(tool, arguments):
  done = program(*tool.split(), '--config', 'shapes', *arguments.split())
  assert done.returncode == 2
  line, *more = done.stderr.splitlines()
  assert len(more) <= 1  # The command that explains a code.
  assert line.startswith('error: ')
  assert 'give --config.optimizer.learning_rate=RATE' in line
