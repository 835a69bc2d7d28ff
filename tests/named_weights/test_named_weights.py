"""Tests of the table of named weights, of the cache, and of their use."""

import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys

from loopback import serving
import numpy as np
import pytest
import tiny

from maskrcnn_jax import __version__, named_weights
from maskrcnn_jax.config import default_config
from maskrcnn_jax.config.check import check_config
from maskrcnn_jax.config.command_line import apply_overrides, parse_overrides
from maskrcnn_jax.config.fine_tuning import shrink_warning
from maskrcnn_jax.convert_weights import command_line
from maskrcnn_jax.convert_weights.peer_models import (
  Conventions,
  guess_format,
  recipe_of,
)
from maskrcnn_jax.convert_weights.torch_files import write_torch
from maskrcnn_jax.data.coco_classes import COCO_CLASSES
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.evaluation.published_ap import expect_published_ap
from maskrcnn_jax.named_weights import cache, table

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / 'convert_weights'))
from weight_files import (
  SMALL,
  assert_same,
  peer_arrays,
  random_leaves,
  read_checkpoint,
)

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch, tmp_path):
  """Gives each test an empty cache, no proxy and no mirror."""
  for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv(name.upper(), raising=False)
  monkeypatch.delenv('MASKRCNN_JAX_MIRROR', raising=False)
  monkeypatch.setenv('MASKRCNN_JAX_WEIGHTS', str(tmp_path / 'cache'))


@pytest.fixture
def published(monkeypatch, tmp_path):
  """A server with a small model, which the table names torchvision:small.

  Returns:
    The server, the arrays of the model by our names, and its row.
  """
  leaves = random_leaves(SMALL)
  path = tmp_path / 'small.pth'
  write_torch(path, peer_arrays(leaves, 'torchvision'))
  content = path.read_bytes()
  with serving() as server:
    server.files['/models/small.pth'] = content
    row = named_weights.TABLE[0]._replace(
      name='torchvision:small',
      address=f'{server.address}/models/small.pth',
      checksum=f'sha256:{hashlib.sha256(content).hexdigest()[:8]}',
    )
    monkeypatch.setattr(table, 'TABLE', (*table.TABLE, row))
    yield server, leaves, row


def converted_folder(name):
  """Returns where the cache has the checkpoint of a name; makes the folder."""
  slug = re.sub(r'[^\w.-]+', '_', name)
  folder = pathlib.Path(os.environ['MASKRCNN_JAX_WEIGHTS'], 'converted')
  path = folder / f'{slug}-{__version__}'
  path.mkdir(parents=True)
  return path


def test_each_row_has_a_name_an_address_and_figures_of_its_own():
  rows = named_weights.TABLE
  assert len({row.name for row in rows}) == len(rows)
  assert len({row.address for row in rows}) == len(rows)
  for row in rows:
    assert named_weights.is_name(row.name), row.name
    assert re.fullmatch(r'https://[\w.-]+/[\w./%-]+\.(pth|pkl)', row.address)
    assert row.publisher.licence and row.publisher.source
    is_detector = 'R-CNN' in row.model
    assert is_detector == (row.box_ap is not None), row.name
    assert ('Mask R-CNN' in row.model) == (row.mask_ap is not None), row.name
    if row.mask_ap is not None:
      # Each published mask AP is 2 to 6 points below the box AP.
      assert 2 < row.box_ap - row.mask_ap < 6.5, row.name
    if row.name.startswith('torchvision:'):
      digits = row.checksum.removeprefix('sha256:')
      assert len(digits) == 8 and row.address.endswith(f'-{digits}.pth')
    if row.name.startswith('detectron2:') and row.box_ap:
      digits = row.checksum.removeprefix('md5:')
      assert len(digits) == 6 and row.address.endswith(f'_{digits}.pkl')


def model_of(row):
  """Returns sizes of a small model that has the conventions of a row."""
  sizes = SMALL | dict(depth=50)
  if '32x8d' in row.name:
    sizes |= dict(groups=4, group_width=32, width=32)
  if row.name.lower().endswith('gn'):
    sizes |= dict(norm='group', width=32, fpn_channels=32, mask_channels=32)
    sizes |= dict(box_convs=1, box_fcs=1)
  return sizes


@pytest.mark.parametrize(
  'name',
  [
    'torchvision:maskrcnn_resnet50_fpn_v2',
    'detectron2:mask_rcnn_R_50_FPN_3x',
    'detectron2:mask_rcnn_X_101_32x8d_FPN_3x',
    'detectron2:mask_rcnn_R_50_FPN_3x_gn',
    'maskrcnn_benchmark:e2e_mask_rcnn_R_50_FPN_1x',
    'maskrcnn_benchmark:e2e_mask_rcnn_X_101_32x8d_FPN_1x',
    'catalog://ImageNetPretrained/MSRA/R-50',
    'catalog://ImageNetPretrained/MSRA/R-101-GN',
  ],
)
def test_conventions_are_those_that_the_converter_finds(name):
  row = table.find_row(name)
  flags = dict(flag[2:].split('=') for flag in row.conventions)
  program = flags['source_format']
  # The second names of Caffe2's norms are those of group norm.
  alias = int(program == 'caffe2' and name.endswith('GN'))
  arrays = peer_arrays(random_leaves(model_of(row)), program, alias=alias)
  assert guess_format(arrays) == program
  config = recipe_of(arrays, {}, program, Conventions())
  assert config.model.norm_eps == float(flags['norm_eps'])
  assert config.model.stride_in_1x1 == (flags['stride_in_1x1'] == 'true')
  for key in ('pixel_mean', 'pixel_std'):
    numbers = tuple(map(float, flags[key].split(',')))
    assert tuple(config.data[key]) == numbers, key


def test_old_weights_of_torchvision_have_no_epsilon():
  # torchvision sets it to 0 for COCO_V1 of version 1 (`overwrite_eps`).
  for row in named_weights.TABLE:
    is_old = row.name in (
      'torchvision:maskrcnn_resnet50_fpn',
      'torchvision:fasterrcnn_resnet50_fpn',
    )
    if row.name.startswith('torchvision:'):
      assert ('--norm_eps=0' in row.conventions) == is_old, row.name


@pytest.mark.parametrize(
  ('text', 'is_name'),
  [
    ('torchvision:unknown', True),
    ('detectron2:mask_rcnn_R_50_FPN_3x', True),
    ('catalog://ImageNetPretrained/MSRA/R-50', True),
    ('runs/torchvision', False),
    ('/data/torchvision:x', False),
    ('https://example.com/a.pth', False),
    ('', False),
  ],
)
def test_is_name(text, is_name):
  assert named_weights.is_name(text) is is_name


def test_an_unknown_name_is_answered_with_the_nearest():
  with pytest.raises(InputError) as error:
    named_weights.find_checkpoint('torchvision:maskrcnn_resnet50_v2')
  assert 'did you mean torchvision:maskrcnn_resnet50_fpn_v2?' in str(
    error.value
  )
  assert '--list_weights' in str(error.value)


def test_list_weights_prints_each_row(run):
  status, out, err = run('--list_weights')
  assert (status, err) == (0, '')
  for row in named_weights.TABLE:
    assert f'\n{row.name}\n' in out
    assert row.address in out
  assert 'AP 47.4 / 41.8' in out
  assert 'sha256:73cbd019' in out
  assert 'CC BY-SA 3.0' in out


def test_readme_has_the_figures_of_the_table():
  text = (ROOT / 'README.md').read_text()
  rows = re.findall(
    r'^\| `((?:torchvision|detectron2|maskrcnn_benchmark|catalog)\S+)` '
    r'\|[^|]*\| ([\d.]*) ?\| ?([\d.]*) ?\|',
    text,
    re.MULTILINE,
  )
  assert len(rows) >= 8
  for name, box_ap, mask_ap in rows:
    row = table.find_row(name)
    figures = [
      '' if ap is None else str(ap) for ap in (row.box_ap, row.mask_ap)
    ]
    assert [box_ap, mask_ap] == figures, name
  # The strongest weights come first.
  assert rows[0][0] == 'torchvision:maskrcnn_resnet50_fpn_v2'
  assert float(rows[0][1]) == max(row.box_ap or 0 for row in table.TABLE)


def test_weights_are_downloaded_and_converted_once(published):
  server, leaves, row = published
  server.cuts = [2000]
  path = named_weights.find_checkpoint('torchvision:small')
  assert [asked[2] for asked in server.asked] == [None, 'bytes=2000-']
  arrays, metadata = read_checkpoint(pathlib.Path(path))
  assert_same(arrays, leaves)
  assert metadata.recipe['geometry'] == 'torchvision'
  assert metadata.recipe['data']['pixel_std'] == [58.395, 57.12, 57.375]
  # The second use needs no server, and nothing is left of the first.
  server.files.clear()
  assert named_weights.find_checkpoint('torchvision:small') == path
  names = [entry.name for entry in pathlib.Path(path).parent.iterdir()]
  slug = 'torchvision_small'
  assert sorted(names) == sorted([f'{slug}.lock', pathlib.Path(path).name])
  # The file is below its host, as wget --force-directories stores it.
  assert (pathlib.Path(path).parents[1] / row.place).is_file()


def test_a_wrong_checksum_is_refused_and_then_downloaded_again(published):
  server, _, row = published
  content = server.files['/models/small.pth']
  server.files['/models/small.pth'] = content[:-1] + b'x'
  for _ in range(2):
    with pytest.raises(InputError, match='C16: .*sha256') as error:
      named_weights.find_checkpoint('torchvision:small')
    assert row.checksum.removeprefix('sha256:') in str(error.value)
  assert len(server.asked) == 2
  assert not list((pathlib.Path(os.environ['MASKRCNN_JAX_WEIGHTS'])
                   / 'converted').glob('*/'))  # fmt: skip
  server.files['/models/small.pth'] = content
  assert named_weights.find_file('torchvision:small').read_bytes() == content


def test_a_file_that_cannot_be_converted_is_one_line(monkeypatch, published):
  server, _, row = published
  server.files['/models/small.pth'] = b'no weights'
  rows = (*table.TABLE[:-1], row._replace(checksum=''))
  monkeypatch.setattr(table, 'TABLE', rows)
  with pytest.raises(InputError, match='C08: .*small.pth') as error:
    named_weights.find_checkpoint('torchvision:small')
  assert '\n' not in str(error.value)


def test_a_file_in_the_cache_is_not_downloaded(published, tmp_path):
  server, _, row = published
  path = tmp_path / 'cache' / row.place
  path.parent.mkdir(parents=True)
  path.write_bytes(server.files['/models/small.pth'])
  assert named_weights.find_file('torchvision:small') == path
  assert server.asked == []


def test_a_mirror_has_the_host_in_its_path(monkeypatch, published):
  server, _, row = published
  elsewhere = row._replace(address='https://weights.example/models/small.pth')
  monkeypatch.setattr(table, 'TABLE', (elsewhere,))
  content = server.files.pop('/models/small.pth')
  server.files['/copies/weights.example/models/small.pth'] = content
  monkeypatch.setenv('MASKRCNN_JAX_MIRROR', f'{server.address}/copies/')
  assert named_weights.find_file('torchvision:small').read_bytes() == content


def test_a_mirror_that_is_no_address_is_refused(monkeypatch):
  monkeypatch.setenv('MASKRCNN_JAX_MIRROR', 'mirror.example')
  with pytest.raises(InputError, match='MASKRCNN_JAX_MIRROR is mirror.example'):
    named_weights.find_file('torchvision:resnet50')


@pytest.mark.skipif(sys.platform != 'linux', reason='writes to /proc')
def test_a_cache_that_cannot_be_written_to_is_named(monkeypatch):
  monkeypatch.setenv('MASKRCNN_JAX_WEIGHTS', '/proc/new')
  with pytest.raises(InputError, match='C10: .*/proc/new.*KRCNN_JAX_WEIGHTS'):
    named_weights.find_checkpoint('torchvision:resnet50')


def test_the_default_cache_is_the_users(monkeypatch):
  monkeypatch.delenv('MASKRCNN_JAX_WEIGHTS')
  monkeypatch.setenv('XDG_CACHE_HOME', '/somewhere')
  expected = pathlib.Path('/somewhere/maskrcnn_jax/weights')
  assert cache._folder() == expected


def test_several_processes_download_once(published):
  server, _, row = published
  # Each child has the row of the parent.
  code = (
    'from maskrcnn_jax.named_weights import cache, table\n'
    f'row = table.TABLE[0]._replace(name={row.name!r}, '
    f'address={row.address!r}, checksum={row.checksum!r})\n'
    'table.TABLE = (row,)\n'
    f'print(cache.find_file({row.name!r}))'
  )
  children = [
    subprocess.Popen(
      [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
    )
    for _ in range(3)
  ]
  found = {child.communicate(timeout=60)[0] for child in children}
  assert len(found) == 1
  assert len(server.asked) == 1


def test_convert_weights_takes_a_name_and_its_flags_count(
  monkeypatch, published, tmp_path
):
  calls = []
  monkeypatch.setattr(
    command_line,
    'convert',
    lambda *args, **kwargs: calls.append((args, kwargs)),
  )
  monkeypatch.setattr(
    sys,
    'argv',
    ['x', 'torchvision:small', str(tmp_path / 'out'), '--pixel_order=bgr'],
  )
  command_line.main()
  (((source, destination), options),) = calls
  assert source.name == 'small.pth' and source.is_file()
  assert destination == tmp_path / 'out'
  assert options['source_format'] == 'torchvision'
  assert options['given'] == Conventions(
    1e-5, False, 'bgr', (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  )


@pytest.fixture
def started(monkeypatch):
  """A list that receives the options of each training; none is run."""
  calls = []
  monkeypatch.setattr(
    'maskrcnn_jax.training.run.train',
    lambda config, workdir, **options: calls.append(options),
  )
  return calls


@pytest.mark.parametrize(
  'arguments',
  [
    ('--init_from=catalog://ImageNetPretrained/MSRA/R-50',),
    ('MODEL.WEIGHT', 'catalog://ImageNetPretrained/MSRA/R-50'),
  ],
  ids=['flag', 'pair'],
)
def test_a_training_starts_from_a_name(run, started, tmp_path, arguments):
  path = converted_folder('catalog://ImageNetPretrained/MSRA/R-50')
  status, _, err = run(
    f'--config={tiny.__file__}', f'--workdir={tmp_path / "run"}', *arguments
  )
  assert status == 0, err
  assert started[0]['init_from'] == path


def test_a_continued_training_needs_no_named_weights(
  run, started, tiny_run, tiny_data
):
  # The cache is empty, and there is no network to fill it from.
  status, _, err = run(
    f'--config={tiny.__file__}',
    f'--workdir={tiny_run[0]}',
    '--init_from=torchvision:resnet50',
  )
  assert status == 0, err
  assert len(started) == 1


@pytest.mark.parametrize(
  'arguments',
  [('--mode=eval', '--checkpoint={}'), ('--mode=train', '--init_from={}')],
  ids=['eval', 'train'],
)
def test_an_unknown_name_is_refused_by_main(refuse, tmp_path, arguments):
  line = refuse(
    f'--config={tiny.__file__}',
    f'--workdir={tmp_path / "run"}',
    *(text.format('detectron2:mask_rcnn_R_50') for text in arguments),
  )
  assert 'no weights of the name detectron2:mask_rcnn_R_50; did you' in line


def val2017(config):
  """Gives a recipe the evaluation set COCO val2017, in place."""
  config.data.eval.images = 'coco/val2017'
  config.data.eval.annotations = 'coco/annotations/instances_val2017.json'
  return config


def test_the_published_ap_is_expected_on_val2017():
  config = val2017(default_config())
  line = expect_published_ap(config, 'torchvision:maskrcnn_resnet50_fpn_v2')
  assert config.expected.box_ap == (0.474, table.TOLERANCE)
  assert config.expected.mask_ap == (0.418, table.TOLERANCE)
  assert 'torchvision:maskrcnn_resnet50_fpn_v2' in line
  check_config(config, for_training=False)


def test_the_published_ap_of_a_box_detector_has_no_mask_ap():
  config = val2017(default_config())
  expect_published_ap(config, 'detectron2:faster_rcnn_R_50_FPN_1x')
  assert config.expected.box_ap == (0.379, table.TOLERANCE)
  assert config.expected.mask_ap is None


def test_the_published_ap_is_not_expected_on_another_set_or_against_the_user():
  name = 'torchvision:maskrcnn_resnet50_fpn_v2'
  config = default_config()
  config.data.eval.annotations = 'mine/val.json'
  assert 'is for COCO val2017' in expect_published_ap(config, name)
  assert config.expected.box_ap is None
  config = val2017(default_config())
  with config.ignore_type():
    config.expected.mask_ap = (0.1, 0.05)
  assert 'config.expected' in expect_published_ap(config, name)
  assert config.expected.box_ap is None
  assert config.expected.mask_ap == (0.1, 0.05)
  config = val2017(default_config())
  line = expect_published_ap(config, 'detectron2:rpn_R_50_FPN_1x')
  assert line == 'No AP is published for detectron2:rpn_R_50_FPN_1x.'


def test_fine_tuning_without_a_checkpoint_proposes_names(
  refuse, tiny_data, tmp_path
):
  line = refuse(
    '--config=finetune',
    f'--workdir={tmp_path / "run"}',
    *tiny.data_flags(tiny_data),
  )
  assert '--init_from=CHECKPOINT is missing' in line
  assert 'torchvision:maskrcnn_resnet50_fpn_v2 (box AP 47.4, mask AP 41.8)' in (
    line
  )
  assert '--list_weights' in line


@pytest.mark.parametrize(
  ('height', 'width', 'warns'),
  [
    # 800 / 1600 is a half; 1333 / 2666 is a half too.
    (1600, 1600, False),
    (1600, 2666, False),
    (2000, 2000, True),
    (1500, 2700, True),
    (600, 800, False),
  ],
)
def test_images_that_are_shrunk_to_less_than_half_are_warned_of(
  height, width, warns
):
  config = default_config()
  heights, widths = np.array([height] * 3), np.array([width] * 3)
  assert bool(shrink_warning(heights, widths, config)) == warns
  # Half of the images at least must be shrunk so much.
  few = np.array([height, 700, 700]), np.array([width, 700, 700])
  assert shrink_warning(*few, config) == ''


def test_the_proposed_image_size_halves_the_images():
  config = default_config()
  heights, widths = np.array([3000, 3024, 3000]), np.array([4000, 4032, 4000])
  warning = shrink_warning(heights, widths, config)
  # 800 / 3000 is 0.267.
  assert 'SHRUNK to 0.27' in warning
  assert '3000x4000' in warning
  flags = re.findall(r"--config\.([\w.]+)='?([^' ]+)", warning)
  assert [key for key, _ in flags] == [
    'data.short_side',
    'data.long_side',
    'data.padded_sizes',
  ]
  apply_overrides(config, parse_overrides(flags))
  check_config(config, for_training=False)
  assert config.data.short_side == 1504  # Half of 3000, in multiples of 32.
  assert shrink_warning(heights, widths, config) == ''


def write_coco(folder, tiny_data):
  """Writes the drawn shapes as if they were COCO val2017, all of class 1.

  Args:
    folder: The folder to write val2017 and annotations/ to.
    tiny_data: The folder of the drawn shapes.
  """
  content = json.loads((tiny_data / 'instances_val.json').read_text())
  content['categories'] = [
    {'id': id_, 'name': name} for id_, name in COCO_CLASSES.items()
  ]
  for annotation in content['annotations']:
    annotation['category_id'] = 1
  (folder / 'annotations').mkdir(parents=True)
  (folder / 'annotations' / 'instances_val2017.json').write_text(
    json.dumps(content)
  )
  (folder / 'val2017').symlink_to(tiny_data / 'images')


# So small images that a CPU evaluates them in seconds.
SMALL_IMAGES = (
  '--config.data.short_side=64',
  '--config.data.long_side=64',
  '--config.data.padded_sizes=((64,64),)',
)


@pytest.mark.slow
@pytest.mark.usefixtures('compilation_cache')
def test_an_evaluation_of_a_name_is_compared_with_its_published_ap(
  run, monkeypatch, tmp_path, tiny_data
):
  write_coco(tmp_path / 'coco', tiny_data)
  path = tmp_path / 'model.pkl'
  write_torch(path, peer_arrays(random_leaves(SMALL, 81), 'torchvision'))
  content = path.read_bytes()
  with serving() as server:
    server.files['/model.pth'] = content
    row = named_weights.TABLE[0]._replace(
      name='torchvision:drawn',
      address=f'{server.address}/model.pth',
      checksum=f'sha256:{hashlib.sha256(content).hexdigest()}',
    )
    outcomes = {}
    # Random weights find nothing: their AP is 0.
    for ap in (0.0, 47.4):
      monkeypatch.setattr(
        table, 'TABLE', (row._replace(box_ap=ap, mask_ap=ap),)
      )
      status, out, err = run(
        '--mode=eval',
        '--checkpoint=torchvision:drawn',
        f'--workdir={tmp_path / "run"}',
        f'--config.data.eval.images={tmp_path / "coco" / "val2017"}',
        '--config.data.eval.annotations='
        f'{tmp_path / "coco" / "annotations" / "instances_val2017.json"}',
        *SMALL_IMAGES,
      )
      assert status == 0, err
      outcomes[ap] = re.findall(
        r'^(PASS|FAIL): (box|mask) AP .*expected (\S+) within 0.0020', out, re.M
      )
  assert outcomes == {
    0.0: [('PASS', 'box', '0.0000'), ('PASS', 'mask', '0.0000')],
    47.4: [('FAIL', 'box', '0.4740'), ('FAIL', 'mask', '0.4740')],
  }
  assert len(server.asked) == 1


@pytest.mark.slow
def test_verify_published_ap_writes_both_outcomes(
  tmp_path, tiny_data, tiny_run
):
  coco = tmp_path / 'coco'
  (coco / 'annotations').mkdir(parents=True)
  (coco / 'val2017').symlink_to(tiny_data / 'images')
  (coco / 'annotations' / 'instances_val2017.json').symlink_to(
    tiny_data / 'instances_val.json'
  )

  def verify(names, *flags):
    """Runs the script and returns its exit status and the rows of its table."""
    done = subprocess.run(
      [
        'bash',
        str(ROOT / 'scripts' / 'verify_published_ap.sh'),
        str(coco),
        str(tmp_path / 'out'),
        *flags,
      ],
      env=os.environ | {'NAMES': names, 'PYTHON': sys.executable},
      capture_output=True,
      text=True,
      timeout=600,
    )
    written = (tmp_path / 'out' / 'published_ap.md').read_text()
    assert done.stdout.endswith(written)
    rows = [
      [cell.strip() for cell in line.split('|')[1:-1]]
      for line in written.splitlines()[2:]
    ]
    return done.returncode, rows

  name = str(tiny_run[0])
  # The AP of two steps of training is about 0.
  status, ((model, box, box_here, mask, mask_here, result),) = verify(
    name, '--config.expected.box_ap=(0.0,0.01)',
    '--config.expected.mask_ap=(0.0,0.01)',
  )  # fmt: skip
  assert (status, model, box, mask) == (0, f'`{name}`', '0.0000', '0.0000')
  assert result == 'PASS'
  assert 0 <= float(box_here) <= 1 and 0 <= float(mask_here) <= 1
  # One of two outcomes fails, and so does the model; the next one is still run.
  status, rows = verify(
    f'{name} torchvision:none',
    '--config.expected.box_ap=(0.0,0.01)',
    '--config.expected.mask_ap=(0.9,0.01)',
  )
  assert status == 1
  assert rows[0] == [f'`{name}`', '0.0000', box_here, '0.9000', mask_here,
                     'FAIL']  # fmt: skip
  assert rows[1][-1].startswith(
    'ERROR: error: There are no weights of the name'
  )
  status, rows = verify(name)
  assert (status, rows[0][-1]) == (1, 'nothing to compare with')
