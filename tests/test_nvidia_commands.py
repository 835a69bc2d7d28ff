"""Tests of main.py with the files, flags and pairs of NVIDIA's program."""

import json
import pathlib
import sys

import pytest
import tiny

from maskrcnn_jax import __version__
from maskrcnn_jax.config.recipe import read_recipe
from maskrcnn_jax.convert_to_coco import convert as to_coco

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'config'))
from nvidia_files import FILES

pytestmark = pytest.mark.usefixtures('compilation_cache')

RECIPE = f'--config={tiny.__file__}'


@pytest.fixture
def file(tmp_path):
  """A YAML file of NVIDIA's program."""
  path = tmp_path / 'faster.yaml'
  path.write_text(FILES['e2e_faster_rcnn_R_50_FPN_1x.yaml'])
  return path


@pytest.fixture
def started(monkeypatch):
  """A list that receives the arguments of each training; none is run."""
  calls = []
  monkeypatch.setattr(
    'maskrcnn_jax.training.run.train',
    lambda config, workdir, **options: calls.append((config, workdir, options)),
  )
  return calls


def test_a_file_with_flags_and_pairs_of_nvidia(run, started, file, tmp_path):
  weights = tmp_path / 'weights'
  weights.mkdir()
  status, _, err = run(
    '--config-file',
    file,
    '--skip-test',
    '--amp',
    'OUTPUT_DIR',
    tmp_path / 'out',
    'MODEL.WEIGHT',
    weights,
    'SOLVER.BASE_LR',
    '0.002',
    'SOLVER.STEPS',
    '(360000, 480000)',
    'DATASETS.TRAIN',
    "('coco_2017_train',)",
  )
  assert status == 0, err
  ((config, workdir, options),) = started
  assert workdir == tmp_path / 'out'
  assert options['init_from'] == weights
  assert options['skip_test'] is True
  assert config.geometry == 'legacy'
  assert config.precision == 'fp16'
  assert config.optimizer.learning_rate == 0.002
  assert config.optimizer.decay_steps == (360_000, 480_000)
  assert options['given_keys'] == {
    'precision',
    'optimizer.learning_rate',
    'optimizer.decay_steps',
    'data.train.images',
    'data.train.annotations',
  }


def test_flags_and_pairs_with_a_recipe_of_this_program(
  run, started, tmp_path, monkeypatch
):
  lines = []
  monkeypatch.setattr(
    'absl.logging.info', lambda form, *values: lines.append(form % values)
  )
  status, _, err = run(
    RECIPE,
    '--skip-test',
    '--workdir',
    tmp_path / 'run',
    '--opts',
    'SOLVER.MAX_ITER',
    '7',
    '--amp',
  )
  assert status == 0, err
  ((config, _, _),) = started
  assert config.train.num_steps == 7
  assert config.precision == 'fp16'
  assert 'SOLVER.MAX_ITER 7 -> train.num_steps = 7' in lines
  assert "DTYPE float16 -> precision = 'fp16'" in lines


def test_the_weights_of_a_file_are_those_of_the_catalog(
  run, started, file, tmp_path, monkeypatch
):
  # The weights are in the cache already, so nothing is downloaded.
  weights = 'catalog_ImageNetPretrained_MSRA_R-50'
  converted = tmp_path / 'converted' / f'{weights}-{__version__}'
  converted.mkdir(parents=True)
  monkeypatch.setenv('MASKRCNN_JAX_WEIGHTS', str(tmp_path))
  status, _, err = run(
    f'--config_file={file}',
    f'--workdir={file.parent / "run"}',
    'DATASETS.TRAIN',
    'coco_2017_train',
    'DTYPE',
    'tf32',
  )
  assert status == 0, err
  assert started[0][2]['init_from'] == converted


def test_other_weights_of_a_file_must_be_converted(refuse, started, file):
  line = refuse(
    f'--config_file={file}',
    f'--workdir={file.parent / "run"}',
    'DATASETS.TRAIN',
    'coco_2017_train',
    'DTYPE',
    'tf32',
    'MODEL.WEIGHT',
    'https://example.com/R-50.pkl',
  )
  assert 'MODEL.WEIGHT is https://example.com/R-50.pkl' in line
  assert 'Give --init_from=weights/R-50: download https://example.com' in line
  assert started == []


def test_a_run_is_continued_without_the_first_weights(run, started, file):
  # A saved step has these two folders.
  for item in ('model', 'metadata'):
    (file.parent / 'run' / 'checkpoints' / '5' / item).mkdir(parents=True)
  status, _, err = run(
    f'--config={file}',
    f'--workdir={file.parent / "run"}',
    'DATASETS.TRAIN',
    'coco_2017_train',
    'DTYPE',
    'tf32',
  )
  assert status == 0, err
  assert len(started) == 1


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ('--config=none.yaml --workdir=x', '--config=none.yaml is not a file; giv'),
    ('--config={file}', '--workdir=DIR is missing'),
    (
      '--config={file} --workdir=a OUTPUT_DIR b',
      '--workdir=a and OUTPUT_DIR b name different folders; leave one of them',
    ),
    (
      '--config={file} --workdir=a SOLVER.BASE_LR fast MODEL.KEYPOINT_ON True',
      '2 keys have no counterpart here or a wrong value: SOLVER.BASE_LR: it is',
    ),
    (
      '--config={file} --workdir=a SOLVER.BASE_LR',
      'SOLVER.BASE_LR needs a',
    ),
    ('--config=shapes --workdir=a FOO 3', "Unexpected argument 'FOO'; --help"),
    (
      '--config=shapes --workdir=a SOLVER.FOO 3',
      'SOLVER.FOO: the keys here',
    ),
    (
      '--config=shapes --workdir=a --amp=yes',
      'There is no option --amp: gi',
    ),
    (
      '--config=shapes --workdir=a MODEL.MASK_ON False',
      'MODEL.MASK_ON: this key can only follow a YAML file',
    ),
    (
      '--config=shapes --workdir=a DTYPE tf32 --config.precision=bf16',
      "DTYPE tf32 sets config.precision to 'tf32', and --config.precision to '",
    ),
    (
      '--config={detectron2} --workdir=a',
      '--config=r50_fpn, the nearest',
    ),
    (
      '--config={broken} --workdir=a',
      'line 1: cannot be read as YAML',
    ),
  ],
)
def test_wrong_input_is_one_line(
  arguments, message, refuse, started, file, tmp_path
):
  detectron2 = tmp_path / 'mask_rcnn_R_50_FPN_1x.yaml'
  detectron2.write_text('_BASE_: "../Base-RCNN-FPN.yaml"\n')
  broken = tmp_path / 'broken.yaml'
  broken.write_text('A: !!python/object/apply:os.getcwd []\n')
  line = refuse(
    *(
      word.format(file=file, detectron2=detectron2, broken=broken)
      for word in arguments.split()
    )
  )
  assert message in line
  assert started == []


def test_evaluation_with_pairs(run, tiny_run, tiny_data, tmp_path):
  workdir, _ = tiny_run
  status, out, err = run(
    '--mode=eval',
    f'--workdir={tmp_path}',
    'MODEL.WEIGHT',
    workdir,
    'TEST.IMS_PER_BATCH',
    '4',
    '--skip-eval',
    f'--config.data.eval.images={tiny_data / "images"}',
    f'--config.data.eval.annotations={tiny_data / "instances_val.json"}',
  )
  assert status == 0, err
  assert json.loads((tmp_path / 'inference' / 'bbox.json').read_text())
  assert 'Average Precision' not in out


def test_a_yaml_recipe_of_this_program(run, started, tmp_path):
  path = tmp_path / 'mine.yaml'
  path.write_text(
    f'maskrcnn_jax_recipe: {tiny.__file__}\ntrain: {{num_steps: 5}}\n'
  )
  status, _, err = run(f'--config={path}', f'--workdir={tmp_path / "run"}')
  assert status == 0, err
  ((config, _, options),) = started
  assert config.train.num_steps == 5
  assert config.model == read_recipe(tiny.__file__).config.model
  assert options['given_keys'] == frozenset()


def test_other_programs_accept_hyphens_too(tmp_path, capsys):
  images = tmp_path / 'images'
  images.mkdir()
  (tmp_path / 'via.json').write_text('{}')
  with pytest.raises(SystemExit):
    to_coco.main(
      [
        'via',
        f'--images={images}',
        f'--annotations={tmp_path / "via.json"}',
        f'--out={tmp_path / "out.json"}',
        '--class-name=thing',
      ]
    )
  # The flag is known; only the images are missing.
  assert 'error: I01' in capsys.readouterr().err
