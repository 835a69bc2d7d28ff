"""Small data sets after public bug reports, by `check_data`."""

import json
import pathlib

import pytest

from maskrcnn_jax.check_data import command_line, contact_sheet

CASES = pathlib.Path(__file__).parents[3] / 'shared/field_cases/check'


def check(tmp_path, monkeypatch, name, *options):
  """Runs check_data on a case.

  Returns:
    The exit status, the codes of the errors, and those of the warnings.
  """
  folder = CASES / name
  if not folder.exists():
    pytest.skip(f'{folder} is not here.')
  monkeypatch.setattr(contact_sheet, 'NUM_EXAMPLES', 1)
  status = command_line.main(
    [
      f'--images={folder / "images"}',
      f'--annotations={folder / "a.json"}',
      f'--out={tmp_path}',
      '--workers=1',
      *options,
    ]
  )
  report = json.loads((tmp_path / 'report.json').read_text())
  codes = {
    level: {f['code']: f for f in report['findings'] if f['level'] == level}
    for level in ('error', 'warning')
  }
  return status, codes['error'], codes['warning']


@pytest.mark.parametrize(
  ('name', 'errors', 'warnings'),
  [
    ('00_good', [], []),
    ('01_robo_same_name_root', [], ['A15']),
    ('09_normalised', ['A28'], []),
    ('10g_annotations_dict_livecell', [], []),
    ('11_lvis', [], ['A12']),
    ('13_polygons_beyond_tile', [], []),
    ('17_dup_annotations', [], ['A30']),
    ('30b_exif6_square_upright_json', [], ['I04']),
    ('40_half_crowd', [], ['A29']),
    ('42_unequal_eight', [], []),
    ('81_rgb16', ['I09'], []),
    ('92_stray_point_in_50', [], ['A05']),
    ('94_polylines_as_polygons', [], ['A10', 'A26']),
    ('95_category_id_list', ['A14'], []),
  ],
)
def test_check_data_says_what_is_wrong(
  tmp_path, monkeypatch, name, errors, warnings
):
  status, found_errors, found_warnings = check(tmp_path, monkeypatch, name)
  assert status == (2 if errors else 0)
  assert sorted(found_errors) == errors
  assert sorted(found_warnings) == warnings


def test_a_bow_tie_has_a_mask(tmp_path, monkeypatch):
  status, errors, warnings = check(tmp_path, monkeypatch, '12e_bow_tie')
  assert status == 0
  # The areas of the file are those of the boxes, twice those of the ties.
  assert list(warnings) == ['A26']


def test_colours_of_16_bits_are_mapped(tmp_path, monkeypatch):
  option = '--config.data.pixel_range=(0,4095)'
  status, errors, _ = check(tmp_path, monkeypatch, '81_rgb16', option)
  assert (status, errors) == (0, {})


def test_classes_that_a_split_lacks_are_named(tmp_path, monkeypatch):
  path = CASES / '48_subset_classes_val' / 'a.json'
  if not path.exists():
    pytest.skip(f'{path} is not here.')
  content = json.loads(path.read_text())
  first = {'id': 1, 'name': 'c1', 'supercategory': ''}
  assert first['id'] not in [c['id'] for c in content['categories']]
  content['categories'].insert(0, first)
  content['images'], content['annotations'] = [], []
  other = tmp_path / 'train.json'
  other.write_text(json.dumps(content))
  status, errors, _ = check(
    tmp_path, monkeypatch, '48_subset_classes_val', f'--against={other}'
  )
  assert status == 2
  assert list(errors) == ['A21']
  (example,) = errors['A21']['examples']
  assert example['reason'].endswith("a.json lacks 1 'c1'.")
