"""Each bad input gives its code and exit status, and never a traceback."""

import json
import pathlib
import warnings

import cases
import numpy as np
import pytest

from maskrcnn_jax.check_data import command_line, contact_sheet
from maskrcnn_jax.config import default_config
from maskrcnn_jax.data import canvases, coco, findings, image_sets, loader
from maskrcnn_jax.data.source import DataSet
from maskrcnn_jax.errors import InputError
from maskrcnn_jax.training import checks as train_start

BY_NAME = {case.name: case for case in cases.CASES}


@pytest.fixture(autouse=True)
def few_examples(monkeypatch):
  """Lets the contact sheet show one example, because drawing takes longest."""
  monkeypatch.setattr(contact_sheet, 'NUM_EXAMPLES', 1)


@pytest.fixture
def make(tmp_path, monkeypatch):
  """A function that writes the data set of a case and returns it."""

  def make_set(case):
    data = cases.Set(tmp_path / 'set', **case.size)
    case.spoil(data)
    data.write()
    # The options of a case name files in the folder of the annotations.
    monkeypatch.chdir(data.folder)
    return data

  return make_set


def run(data, *options):
  """Runs check_data and returns (exit status, report)."""
  status = command_line.main(
    [
      f'--images={data.images_dir}',
      f'--annotations={data.annotations}',
      f'--out={data.folder / "out"}',
      '--workers=1',
      *options,
    ]
  )
  return status, json.loads((data.folder / 'out/report.json').read_text())


@pytest.mark.parametrize('name', BY_NAME)
def test_check_data_gives_the_code_and_the_status(make, name, capsys):
  case = BY_NAME[name]
  data = make(case)
  status, report = run(data, *case.options)
  found = {f['code']: f for f in report['findings']}
  errors = {code for code, f in found.items() if f['level'] == 'error'}
  printed = capsys.readouterr()
  assert status == (2 if case.is_error else 0)
  # No finding follows from an entry that was itself rejected.
  assert errors == ({case.code} if case.is_error else set()), printed.out
  if case.code:
    assert found[case.code]['count'] >= 1
    assert found[case.code]['examples'][0]['reason']
    assert f'{case.code}  ' in printed.out
  else:
    assert not found
  assert 'Traceback' not in printed.err


@pytest.mark.parametrize('name', [c.name for c in cases.CASES if c.is_fixable])
def test_fix_leaves_no_error(make, name, capsys):
  case = BY_NAME[name]
  data = make(case)
  fixed = data.folder / 'fixed.json'
  status, report = run(data, f'--fix={fixed}', *case.options)
  assert status == 0
  changes = report['fix']['changes']
  assert changes
  out = capsys.readouterr().out
  for change in changes:
    assert change['where'] in out
    assert change['code'] == case.code or change['code'] in ('A14', 'I01')
  data.annotations = fixed
  status, report = run(data, *case.options)
  assert status == 0
  assert not report['findings'], report['findings']


def fix(data, *options):
  """Runs check_data with --fix.

  Returns:
    The exit status, the report's entry about the copy, and the copy.
  """
  fixed = data.folder / 'fixed.json'
  status, report = run(data, f'--fix={fixed}', *options)
  return status, report['fix'], json.loads(fixed.read_text())


def test_fix_writes_corners_as_width_and_height(make):
  data = make(BY_NAME['boxes_as_corners'])
  _, report, fixed = fix(data, '--boxes_only')
  # The corners (50, 38) and (70, 60) become a box of 20 x 22 pixels.
  boxes = [a['bbox'] for a in fixed['annotations']]
  assert boxes == 6 * [[50, 38, 20, 22], [50, 39, 20, 21], [50, 40, 20, 20]]
  assert [c['code'] for c in report['changes']] == ['A03'] * 18


def test_fix_leaves_boxes_alone_when_those_of_another_file_are_corners(make):
  data = make(BY_NAME['boxes_as_corners'])
  data.annotations.rename(data.folder / 'other.json')
  # (10, 10, 30, 30) could also be the corners of a box.
  for entry in data.objects:
    entry['bbox'] = [10, 10, 30, 30]
    entry['segmentation'] = [[10, 10, 40, 10, 40, 40, 10, 40]]
    entry['area'] = 900
  data.write()
  _, report, fixed = fix(data, '--against=other.json')
  assert report['changes'] == []
  assert fixed == data.content


def test_fix_leaves_boxes_alone_that_cannot_all_be_corners(make):
  data = make(BY_NAME['boxes_as_corners'])
  # As corners, the first box would begin left of its image. It does not stick
  # out far enough to prove that the boxes are no corners, so that A03 remains.
  data.first['bbox'] = [-20, 40, 70, 60]
  data.write()
  status, report, fixed = fix(data)
  assert status == 2
  assert 'A03' in report['left']
  assert fixed['annotations'] == data.objects


@pytest.mark.parametrize(
  ('name', 'code'),
  [
    ('crowds_only', 'A23'),
    ('many_beyond_slots', 'A24'),
    ('size_wrong', 'I05'),
    ('size_0', 'I05'),
    ('image_id_twice', 'A17'),
    ('image_in_both_splits', 'A20'),
    ('other_classes', 'A21'),
  ],
)
def test_fix_names_the_errors_that_are_left(make, name, code):
  case = BY_NAME[name]
  status, report, _ = fix(make(case), *case.options)
  assert status == 2
  assert report['left'] == [code]


def test_fix_of_objects_without_masks_leaves_nothing_to_train_on(make):
  data = make(BY_NAME['boxes_only'])
  status, report, _ = fix(data)
  assert status == 2
  assert report['left'] == ['A23']


def test_fix_leaves_out_all_of_many_images(make):
  data = make(BY_NAME['clean'])
  data.images.extend({'file_name': 'x.png'} for _ in range(30))
  data.write()
  status, report, _ = fix(data)
  assert status == 0
  assert [c['code'] for c in report['changes']] == ['A19'] * 30


def test_fix_leaves_the_objects_of_an_image_of_wrong_size_alone(make):
  data = make(BY_NAME['size_wrong'])
  data.first['segmentation'] = cases.compressed(cases.mask())
  data.write()
  _, report, fixed = fix(data)
  assert report['changes'] == []
  assert fixed == data.content


def test_fix_changes_nothing_of_a_clean_set(make):
  data = make(BY_NAME['clean'])
  fixed = data.folder / 'fixed.json'
  status, report = run(data, f'--fix={fixed}')
  assert status == 0
  assert report['fix']['changes'] == []
  assert json.loads(fixed.read_text()) == data.content
  assert run_status(data, f'--fix={fixed}') == 2


def run_status(data, *options):
  """Runs check_data and returns the exit status, without reading a report."""
  return command_line.main(
    [
      f'--images={data.images_dir}',
      f'--annotations={data.annotations}',
      f'--out={data.folder / "out"}',
      '--workers=1',
      *options,
    ]
  )


@pytest.mark.parametrize(
  'name', [c.name for c in cases.CASES if c.found_at != 'never']
)
def test_training_stops_at_errors_and_goes_on_with_the_rest(make, name):
  case = BY_NAME[name]
  data = make(case)
  config = default_config()
  config.data.train.images = str(data.images_dir)
  config.data.train.annotations = str(data.annotations)
  config.data.padded_sizes = (
    *config.data.padded_sizes,
    (32, 1344),
    (1344, 1344),
  )

  def start():
    data_set, _ = train_start.read_training_set(config)
    return data_set, image_sets.find_limits(
      data_set.coco_index, max_objects=100
    )

  def load(data_set, limits):
    index = data_set.coco_index
    plan = canvases.plan_canvases(
      index.heights,
      index.widths,
      short_side=800,
      long_side=1333,
      padded_sizes=config.data.padded_sizes,
      max_source_side=2666,
    )
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # Pillow warns of damaged images.
      for row in range(len(index.heights)):
        batch = loader.load_row(data_set, plan, row, limits)
        assert np.isfinite(batch.outlines.vertices).all()

  if case.is_error and case.found_at == 'start':
    with pytest.raises(InputError, match=rf'\b{case.code}: ') as caught:
      start()
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 700
    return
  data_set, limits = start()
  if case.is_error:
    with pytest.raises(InputError, match=rf'\b{case.code}: '):
      load(data_set, limits)
  else:
    load(data_set, limits)


@pytest.mark.parametrize('output', ['boxes', 'proposals'])
def test_a_model_without_masks_trains_on_objects_without_masks(make, output):
  data = make(BY_NAME['boxes_only'])
  config = default_config()
  config.data.train.images = str(data.images_dir)
  config.data.train.annotations = str(data.annotations)
  with pytest.raises(InputError, match=r'A06: .*config.model.output=boxes'):
    train_start.read_training_set(config)
  config.model.output = output
  data_set, _ = train_start.read_training_set(config)
  assert len(data_set.coco_index.classes) == len(data.objects)
  status, report = run(data, f'--config.model.output={output}')
  assert status == 0, report['findings']


@pytest.mark.parametrize('name', ['rle_compressed', 'rle_uncompressed'])
def test_an_rle_trains_as_the_polygon_that_it_was(make, name):
  data = make(BY_NAME[name])
  of_rle = coco.read_coco(data.annotations)
  data.first['segmentation'] = [cases.SQUARE]
  data.write()
  of_polygon = coco.read_coco(data.annotations)
  from maskrcnn_jax.data.outlines import fill_outline

  masks = [
    fill_outline(
      index.vertices[: index.outline_starts[1]],
      index.parts[: index.outline_starts[1]],
      cases.HEIGHT,
      cases.WIDTH,
    )
    for index in (of_rle, of_polygon)
  ]
  assert (masks[0] == cases.mask().view(bool)).all()
  assert (masks[1] == masks[0]).all()


def test_annotations_that_are_not_there_are_named_with_their_option(
  make, capsys
):
  data = make(BY_NAME['clean'])
  config = default_config()
  config.data.train.images = config.data.eval.images = str(data.images_dir)
  config.data.train.annotations = 'none.json'
  config.data.eval.annotations = 'data/coco/annotations/instances_val2017.json'
  with pytest.raises(
    InputError, match=r'none\.json; --config\.data\.train\.annotations says'
  ):
    train_start.read_training_set(config)
  with pytest.raises(InputError, match='download_dataset.sh data/coco down'):
    train_start.check_eval_set(
      config, DataSet(coco.read_coco(data.annotations), data.images_dir)
    )
  assert run_status(data, '--against=none.json') == 2
  assert 'none.json; --against says where' in capsys.readouterr().out


def test_check_data_takes_gray_of_16_bits_with_a_pixel_range(make, capsys):
  data = make(BY_NAME['image_16_bit'])
  status, report = run(data, '--config.data.pixel_range=(0,65535)')
  assert status == 0, report['findings']
  assert run_status(data) == 2
  assert 'here from 40000 to 40000' in capsys.readouterr().out


CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def test_check_data_completes_the_recipe_of_a_fine_tuning(make, capsys):
  data = make(BY_NAME['clean'])
  status, _ = run(data, f'--config={CONFIGS / "finetune.py"}')
  assert status == 0
  assert 'A fine-tuning takes' in capsys.readouterr().out
  # A given number of slots is kept: 3 objects in each image are more than 2.
  status, report = run(
    data,
    f'--config={CONFIGS / "finetune.py"}',
    '--config.data.max_objects=2',
  )
  assert status == 2
  assert [f['code'] for f in report['findings']] == ['A24']


def test_check_data_takes_a_recipe_with_an_argument(make, capsys):
  data = make(BY_NAME['clean'])
  status, _ = run(data, f'--config={CONFIGS / "r50_fpn.py"}:2014')
  assert status == 0
  capsys.readouterr()
  assert run_status(data, f'--config={CONFIGS / "r50_fpn.py"}:1999') == 2
  assert 'give the year of COCO, 2014 or 2017' in capsys.readouterr().err
  assert run_status(data, f'--config={CONFIGS / "shapes.py"}:2014') == 2
  assert 'takes no argument; leave :2014 out' in capsys.readouterr().err


def test_every_row_of_data_has_a_case():
  there = {case.code for case in cases.CASES}
  # Some cases are about input that is accepted; they have no code.
  assert set(findings.MEANINGS) <= there


def test_warnings_are_few_lines_in_the_log(make, caplog):
  data = make(BY_NAME['iscrowd_missing'])
  config = default_config()
  config.data.train.images = str(data.images_dir)
  config.data.train.annotations = str(data.annotations)
  with caplog.at_level('WARNING'):
    train_start.read_training_set(config)
  lines = [r.getMessage() for r in caplog.records if 'A12' in r.getMessage()]
  assert len(lines) == 1
  assert '18 annotations' in lines[0]
