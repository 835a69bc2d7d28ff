"""Tests of data/json_stream.py."""

import gzip
import json
import random

import pytest

from maskrcnn_jax import errors
from maskrcnn_jax.data import json_stream


@pytest.fixture
def read(tmp_path):
  """Returns a function that reads a text with `walk` and returns its values."""

  def read_all(text):
    path = tmp_path / 'a.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    content = {}
    for key, position, element in json_stream.walk(path):
      match position:
        case json_stream.LIST:
          content[key] = []
        case json_stream.OTHER:
          content[key] = element
        case _:
          assert position == len(content[key])
          content[key].append(element)
    return content

  return read_all


def random_value(rng, depth=0):
  match rng.randrange(3 if depth < 4 else 1):
    case 0:
      return rng.choice(
        [1, -2.5, 1e300, 1e-7, True, None, 'a"b\\ü\U0001f600', '', 10**19]
      )
    case 1:
      return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
  count = rng.randrange(4)
  return {f'k{i}': random_value(rng, depth + 1) for i in range(count)}


@pytest.mark.parametrize('window', [1, 2, 3, 7, 1000])
def test_walk_yields_what_json_loads_gives(read, monkeypatch, window):
  monkeypatch.setattr(json_stream, '_WINDOW', window)
  rng = random.Random(window)
  for _ in range(60):
    content = {f'x{i}': random_value(rng) for i in range(rng.randrange(5))}
    text = json.dumps(
      content, indent=rng.choice([None, 2]), ensure_ascii=rng.random() < 0.5
    )
    assert read(text) == content


@pytest.mark.parametrize('window', [1, 5, 1000])
def test_walk_refuses_what_json_refuses(read, monkeypatch, window):
  monkeypatch.setattr(json_stream, '_WINDOW', window)
  rng = random.Random(window)
  outcomes = set()
  for _ in range(300):
    text = bytearray(
      json.dumps({f'x{i}': random_value(rng) for i in range(3)}).encode()
    )
    text[rng.randrange(len(text))] = rng.choice(b'{}[]",:0a \xff')
    try:
      expected = json_stream.loads(text.decode())
    except ValueError:
      expected = None
    outcomes.add(expected is None)
    if expected is None:
      with pytest.raises(errors.InputError, match='A25: .*is not JSON'):
        read(bytes(text))
    else:
      assert read(bytes(text)) == expected
  assert outcomes == {True, False}


@pytest.mark.parametrize(
  ('text', 'complaint'),
  [
    ('{"a": [1], "a": [2]}', "'a' comes twice"),
    ('{"a": [{"b": 1, "b": 2}]}', "'b' comes twice"),
    ('{"a": ' + '[' * 200_000, 'nested too deeply'),
    ('{"a": [' + '{"b":' * 200_000, 'nested too deeply'),
    ('{} {}', 'more text follows after the end'),
    ('{"a": ' + '9' * 5000 + '}', 'digits'),
    (b'{"a": "\xff"}', 'not UTF-8'),
    (gzip.compress(b'{}', mtime=0), 'gzip'),
  ],
)
def test_walk_says_what_is_wrong(read, text, complaint):
  with pytest.raises(errors.InputError, match=f'A25: .*{complaint}'):
    read(text)


def test_walk_gives_up_on_an_element_that_never_ends(read, monkeypatch):
  monkeypatch.setattr(json_stream, '_WINDOW', 10)
  monkeypatch.setattr(json_stream, '_MAX_ELEMENT', 1000)
  with pytest.raises(errors.InputError, match='more than 1000 characters'):
    read('{"a": ["' + 'x' * 5000)


def test_walk_stops_at_the_first_fault_and_reads_no_further(read, monkeypatch):
  monkeypatch.setattr(json_stream, '_WINDOW', 100)
  with pytest.raises(errors.InputError, match=r'\(character 10\)'):
    read('{"a": [1, x' + ' ' * 10**6)


def test_walk_reads_a_list_and_a_number(read):
  assert read('[1, {"a": 2}]') == {None: [1, {'a': 2}]}
  assert read(' 3 ') == {None: 3}


@pytest.mark.parametrize('window', [1, 7, 1000])
def test_walk_reads_an_object_of_annotations_as_a_list(
  read, monkeypatch, window
):
  monkeypatch.setattr(json_stream, '_WINDOW', window)
  entries = [{'id': i, 'x': list(range(i))} for i in range(4)]
  table = {str(entry['id']): entry for entry in entries}
  content = {'annotations': table, 'images': entries, 'info': table}
  assert read(json.dumps(content)) == content | {'annotations': entries}
  # An object of other values is no list of elements.
  for other in ({}, {'count': 3, 'a': {}}):
    assert read(json.dumps({'annotations': other})) == {'annotations': other}
  # An element that is no object is left to the caller, who names it.
  mixed = {'annotations': {'a': {}, 'b': 3}}
  assert read(json.dumps(mixed)) == {'annotations': [{}, 3]}


def test_walk_refuses_an_annotation_that_comes_twice(read):
  with pytest.raises(errors.InputError, match="the name '1' comes twice"):
    read('{"annotations": {"1": {}, "2": {}, "1": {}}}')


@pytest.mark.parametrize('field', ['id', 'image_id', 'category_id'])
def test_walk_refuses_ids_that_have_one_hash(read, field):
  # Python's hash of an integer is its remainder modulo 2**61 - 1.
  ids = [7 + i * (2**61 - 1) for i in range(2000)]
  text = json.dumps({'annotations': [{field: id_} for id_ in ids]})
  with pytest.raises(errors.InputError, match='A19: .*same remainder'):
    read(text)


def test_walk_accepts_large_ids_of_other_kinds(read):
  rng = random.Random(0)
  ids = [rng.getrandbits(128) for _ in range(2000)] + [2**61 - 1] * 2000
  content = {'annotations': [{'id': id_} for id_ in ids]}
  assert read(json.dumps(content)) == content
