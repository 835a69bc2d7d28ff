"""Tests of the scripts that train, evaluate, infer and measure speed.

Most tests replace the program by a stand-in that records its arguments. The
slow test runs the program itself.
"""

import json
import os
import pathlib
import re
import shlex
import stat
import subprocess
import sys

import numpy as np
import pytest
import tiny

ROOT = pathlib.Path(__file__).parents[2]
PRECISIONS = {
  'float16': 'fp16',
  'bfloat16': 'bf16',
  'tf32': 'tf32',
  'float32': 'fp32',
}


def command(script, *arguments, **environment):
  """Runs a script of scripts/ with additional environment variables."""
  return subprocess.run(
    ['bash', str(ROOT / 'scripts' / script), *map(str, arguments)],
    env=os.environ | {k: str(v) for k, v in environment.items()},
    capture_output=True,
    text=True,
    timeout=900,
  )


def refusal(script, *arguments, **environment):
  """Runs a script that must refuse its arguments; returns its only line."""
  done = command(script, *arguments, **environment)
  assert done.returncode == 2, done.stderr
  assert done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ')
  return line


@pytest.fixture
def program(tmp_path):
  """A stand-in for Python, which the variable PYTHON names.

  It answers the question for the devices with $DEVICES. With other arguments it
  adds a line to the file `calls`: $CUDA_VISIBLE_DEVICES, $XLA_FLAGS, and the
  arguments. The benchmark prints 10 images/s for a batch of 8, 20 for 16, and
  so on.
  """
  path = tmp_path / 'python'
  path.write_text(f"""#!/usr/bin/env bash
if [[ $1 == - ]]; then echo "$DEVICES"; exit; fi
{{
  printf '%s|%s|' "${{CUDA_VISIBLE_DEVICES:-}}" "${{XLA_FLAGS:-}}"
  printf '%q ' "$@"
  echo
}} >> '{tmp_path}/calls'
for argument in "$@"; do
  if [[ $argument == --batch_size=* ]]; then
    echo a line
    speed=$(( ${{argument#*=}} * 10 / 8 ))
    echo '{{"mode": "x", "images_per_s": '$speed'.0, "compile_s": 2}}'
  fi
done
""")
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return path


def calls(program):
  """Returns [visible GPUs, XLA_FLAGS, arguments] of each call so far."""
  lines = (program.parent / 'calls').read_text().splitlines()
  parts = [line.split('|', 2) for line in lines]
  return [[gpus, flags, shlex.split(text)] for gpus, flags, text in parts]


@pytest.mark.parametrize(
  'script',
  [
    'train.sh',
    'eval.sh',
    'inference.sh',
    'train_benchmark.sh',
    'inference_benchmark.sh',
    'download_dataset.sh',
    'verify_dataset.sh',
    'extract_dataset.sh',
    'verify_published_ap.sh',
    'docker/build.sh',
    'docker/interactive.sh',
  ],
)
def test_each_command_explains_itself(script):
  done = command(script, '--help', DOCKER='none')
  assert (done.returncode, done.stderr) == (0, '')
  assert f'  bash scripts/{script}' in done.stdout
  assert not re.search('^#|^set|^source', done.stdout, re.MULTILINE)
  assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
  ('devices', 'recipe'),
  [
    ('gpu 8 80', 'r50_fpn_bs64'),
    ('gpu 1 90', 'r50_fpn_bs64'),
    ('gpu 8 75', 'r50_fpn'),
    ('gpu 8 70', 'r50_fpn'),
    ('cpu 1 0', 'r50_fpn'),
  ],
)
def test_train_takes_the_recipe_for_the_devices(program, devices, recipe):
  results = program.parent / 'out' / 'results'
  done = command(
    'train.sh',
    '--init_from=a b',
    PYTHON=program,
    DEVICES=devices,
    RESULTS=results,
  )
  assert done.returncode == 0, done.stderr
  ((_, _, arguments),) = calls(program)
  assert arguments == [
    '-m',
    'maskrcnn_jax.main',
    '--config.precision=auto',
    f'--workdir={results}',
    f'--config={recipe}:2014',
    '--init_from=a b',
  ]
  assert results.is_dir()


def test_train_takes_the_recipe_and_the_workdir_of_the_flags(program):
  done = command(
    'train.sh',
    'bfloat16',
    '--config=mine.py',
    '--workdir',
    'there',
    'SOLVER.BASE_LR',
    '0.01',
    PYTHON=program,
    RESULTS='/proc/none',
  )
  assert done.returncode == 0, done.stderr
  assert calls(program)[0][2][2:] == [
    '--config.precision=bf16',
    '--config=mine.py',
    '--workdir',
    'there',
    'SOLVER.BASE_LR',
    '0.01',
  ]


@pytest.mark.parametrize('arguments', [['--amp'], ['DTYPE', 'float16']])
def test_the_precision_of_nvidias_flags_is_left_to_the_program(
  program, tmp_path, arguments
):
  (tmp_path / 'last_checkpoint').touch()
  for script in ('train.sh', 'eval.sh'):
    options = ['--config-file=a.yaml', *arguments]
    command(script, *options, PYTHON=program, RESULTS=tmp_path)
    assert calls(program)[-1][2][-len(options) :] == options
  assert '--config.precision' not in (tmp_path / 'calls').read_text()
  assert '--config=' not in (tmp_path / 'calls').read_text()


def test_eval_takes_a_folder_in_capital_letters(program, tmp_path):
  (tmp_path / 'RUN1').mkdir()
  (tmp_path / 'RUN1' / 'last_checkpoint').touch()
  done = subprocess.run(
    ['bash', str(ROOT / 'scripts' / 'eval.sh'), 'RUN1'],
    cwd=tmp_path,
    env=os.environ | {'PYTHON': str(program)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert '--workdir=RUN1' in calls(program)[0][2]


def test_train_takes_another_year(program, tmp_path):
  options = {'PYTHON': program, 'DEVICES': 'cpu 1 0', 'RESULTS': tmp_path}
  command('train.sh', YEAR=2017, **options)
  assert '--config=r50_fpn:2017' in calls(program)[0][2]


@pytest.mark.parametrize('name', PRECISIONS)
@pytest.mark.parametrize(
  'script',
  ['train.sh', 'eval.sh', 'inference.sh', 'train_benchmark.sh'],
)
def test_each_command_takes_a_precision(program, tmp_path, script, name):
  (tmp_path / 'last_checkpoint').touch()
  command(script, name, PYTHON=program, DEVICES='gpu 1 80', RESULTS=tmp_path)
  ((_, _, arguments),) = calls(program)
  (given,) = (x for x in arguments if 'precision=' in x)
  assert given.partition('=')[2] == PRECISIONS[name]


@pytest.mark.parametrize(
  ('script', 'flags'), [('eval.sh', []), ('inference.sh', ['--skip_eval'])]
)
def test_eval_and_inference_take_the_folder_of_a_training(
  program, tmp_path, script, flags
):
  (tmp_path / 'last_checkpoint').touch()
  done = command(
    script, 'tf32', tmp_path, 'mine.py', '--config.seed=1', PYTHON=program
  )
  assert done.returncode == 0, done.stderr
  assert calls(program)[0][2] == [
    '-m',
    'maskrcnn_jax.main',
    '--mode=eval',
    f'--workdir={tmp_path}',
    *flags,
    '--config=mine.py',
    '--config.precision=tf32',
    '--config.seed=1',
  ]


def test_eval_of_converted_weights_needs_no_last_checkpoint(program, tmp_path):
  done = command(
    'eval.sh', '--checkpoint=weights', PYTHON=program, RESULTS=tmp_path
  )
  assert done.returncode == 0, done.stderr
  assert '--checkpoint=weights' in calls(program)[0][2]


@pytest.mark.parametrize(
  ('script', 'arguments', 'message'),
  [
    ('train.sh', ['float8'], 'float8 is not a precision; give float16,'),
    ('train.sh', ['--x'], 'cannot write to /proc/none; name another folder'),
    ('eval.sh', [], 'no file /proc/none/last_checkpoint'),
    ('eval.sh', ['there'], 'no file there/last_checkpoint'),
    ('inference.sh', ['a', 'float8'], 'float8 is neither a precision'),
    ('train_benchmark.sh', ['float8'], 'float8 is neither a precision'),
    ('train_benchmark.sh', ['tf32', '1,0'], '1,0 is neither a precision'),
    ('train_benchmark.sh', ['1,4'], 'there are 2 GPUs here, not 4'),
    ('inference_benchmark.sh', ['--batch_size=4'], 'BATCH=8 bash'),
    ('docker/interactive.sh', [], 'give the folder of the data set'),
    ('docker/interactive.sh', ['/none'], '/none is not a folder'),
  ],
)
def test_wrong_arguments_are_one_line(program, script, arguments, message):
  line = refusal(
    script,
    *arguments,
    PYTHON=program,
    DEVICES='gpu 2 80',
    RESULTS='/proc/none',
    DOCKER='true',
  )
  assert message in line


def test_benchmark_needs_a_number_of_images(program):
  line = refusal(
    'train_benchmark.sh', PYTHON=program, DEVICES='cpu 1 0', BATCH='many'
  )
  assert 'BATCH=many is no number of images' in line


def test_a_missing_engine_is_one_line():
  assert 'there is no none here' in refusal('docker/build.sh', DOCKER='none')


@pytest.mark.parametrize(
  ('visible', 'expected'),
  [('', ['0', '0,1,2,3']), ('7,5,3,1', ['7', '7,5,3,1'])],
)
def test_train_benchmark_shows_the_speed_up(program, visible, expected):
  environment = {'CUDA_VISIBLE_DEVICES': visible} if visible else {}
  done = command(
    'train_benchmark.sh',
    'float16',
    '1,4',
    '--size=64x64',
    PYTHON=program,
    DEVICES='gpu 4 90',
    **environment,
  )
  assert done.returncode == 0, done.stderr
  # The stand-in needs 0.8 s for each image.
  assert done.stdout.splitlines() == [
    'a line',
    'a line',
    'devices  images each  images/s  speed-up',
    '      1             8     10.00      1.00',
    '      4             8     40.00      4.00',
    '40.00 images/s',
  ]
  found = calls(program)
  assert [gpus for gpus, _, _ in found] == expected
  assert found[1][2] == [
    '-m',
    'maskrcnn_jax.benchmark',
    '--config=r50_fpn',
    '--mode=train',
    '--precision=fp16',
    '--steps=20',
    '--batch_size=32',
    '--size=64x64',
  ]


@pytest.mark.parametrize(
  ('script', 'devices', 'batch'),
  [
    ('train_benchmark.sh', 'gpu 8 90', 64),
    ('train_benchmark.sh', 'gpu 8 70', 32),
    ('inference_benchmark.sh', 'gpu 8 90', 8),
  ],
)
def test_benchmarks_use_all_gpus_to_train_and_one_to_infer(
  program, script, devices, batch
):
  done = command(script, PYTHON=program, DEVICES=devices)
  assert done.stdout.splitlines()[-1] == f'{batch * 10 // 8:.2f} images/s'
  ((_, _, arguments),) = calls(program)
  assert f'--batch_size={batch}' in arguments
  assert '--precision=auto' in arguments


def test_benchmark_simulates_devices_on_a_cpu(program):
  done = command(
    'inference_benchmark.sh',
    '1,2',
    PYTHON=program,
    DEVICES='cpu 1 0',
    XLA_FLAGS='--other',
    BATCH=4,
  )
  assert done.returncode == 0, done.stderr
  assert [(flags, a[-1]) for _, flags, a in calls(program)] == [
    (f'--other --xla_force_host_platform_device_count={n}', f'--batch_size={b}')
    for n, b in ((1, 4), (2, 8))
  ]


def test_a_benchmark_that_fails_ends_the_command(tmp_path):
  failing = tmp_path / 'python'
  failing.write_text(
    '#!/usr/bin/env bash\n[[ $1 != - ]] && exit 3\necho cpu 1 0\n'
  )
  failing.chmod(0o755)
  done = command('train_benchmark.sh', PYTHON=failing)
  assert (done.returncode, done.stdout) == (3, '')


@pytest.fixture
def engine(tmp_path):
  """A stand-in for docker, which prints its arguments in lines."""
  path = tmp_path / 'engine'
  path.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  path.chmod(0o755)
  return path


def test_build_builds_the_project(engine):
  done = command('docker/build.sh', '--tag=mine', DOCKER=engine)
  assert done.stdout.splitlines() == [
    'build',
    f'--file={ROOT}/scripts/docker/Dockerfile',
    '--tag=maskrcnn_jax',
    '--tag=mine',
    str(ROOT),
  ]


def test_interactive_mounts_data_and_results(engine, tmp_path):
  data = tmp_path / 'my data'
  data.mkdir()
  done = command(
    'docker/interactive.sh',
    data,
    'bash',
    'scripts/train.sh',
    DOCKER=engine,
    RESULTS=tmp_path / 'out',
  )
  words = done.stdout.splitlines()
  assert words[0] == 'run'
  assert '--gpus=all' in words
  assert '--tty' not in words  # The input of the test is no terminal.
  assert f'--volume={data}:/workspace/maskrcnn_jax/data/coco:ro' in words
  assert f'--volume={tmp_path}/out:/results' in words
  assert words[-3:] == ['maskrcnn_jax', 'bash', 'scripts/train.sh']
  done = command(
    'docker/interactive.sh', data, DOCKER=engine, GPUS='', RESULTS=tmp_path
  )
  assert '--gpus' not in done.stdout


def pins(name):
  """Returns {package: version} of a lock."""
  text = (ROOT / name).read_text()
  return dict(re.findall(r'^([\w.-]+)==([\w.]+)', text, re.MULTILINE))


def test_the_lock_for_gpus_has_the_versions_that_the_tests_use():
  here, gpu = pins('requirements.lock'), pins('requirements-gpu.lock')
  assert {name: here[name] for name in gpu if name in here} == {
    name: version
    for name, version in gpu.items()
    # JAX's packages for CUDA are not needed for the tests.
    if not name.startswith(('nvidia-', 'jax-cuda13-'))
  }
  assert gpu['jax-cuda13-plugin'] == here['jaxlib']
  blocks = (ROOT / 'requirements-gpu.lock').read_text().split('==')[1:]
  assert all('--hash=sha256:' in block for block in blocks)


def test_the_image_gets_every_file_that_the_program_needs():
  lines = (ROOT / '.dockerignore').read_text().splitlines()
  kept = {line[1:] for line in lines if line.startswith('!')}
  assert '*' in lines
  assert {'maskrcnn_jax', 'pallas_kernels', 'configs', 'scripts'} <= kept
  # The names of recipes are looked up beside this file.
  assert 'setup.cfg' in kept
  assert all((ROOT / name).exists() for name in kept)
  dockerfile = (ROOT / 'scripts' / 'docker' / 'Dockerfile').read_text()
  assert 'COPY requirements-gpu.lock' in dockerfile
  assert 'requirements-gpu.lock' in kept
  assert dockerfile.rindex('USER 1000') > dockerfile.rindex('RUN ')


@pytest.mark.slow
def test_the_commands_run_on_a_tiny_set(tiny_data, tmp_path):
  environment = {
    'PYTHON': sys.executable,
    'RESULTS': tmp_path / 'results',
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': tiny.QUICK_COMPILATION,
  }
  recipe = f'--config={tiny.__file__}'
  done = command(
    'train.sh', 'float16', recipe, *tiny.data_flags(tiny_data), **environment
  )
  assert done.returncode == 0, done.stderr
  results = tmp_path / 'results'
  last = pathlib.Path((results / 'last_checkpoint').read_text().strip())
  assert (results / last).name == '4'
  detections = ['bbox.json', 'predictions.npz', 'segm.json']
  inference = results / 'inference'
  assert sorted(p.name for p in inference.iterdir()) == sorted(
    [*detections, 'coco_results.json']
  )
  log = (results / 'log.txt').read_text()
  assert 'Evaluation at step 4: box AP' in log

  for path in inference.iterdir():
    path.unlink()
  done = command('eval.sh', **environment)
  assert done.returncode == 0, done.stderr
  assert 'Average Precision' in done.stdout
  assert 'Precision: fp32 (auto; cpu)' in done.stderr
  assert json.loads((inference / 'coco_results.json').read_text())['step'] == 4

  done = command('inference.sh', 'bfloat16', results, **environment)
  assert done.returncode == 0, done.stderr
  assert done.stdout == ''
  assert sorted(p.name for p in inference.iterdir()) == detections
  with np.load(inference / 'predictions.npz') as arrays:
    assert len(arrays['masks']) == len(arrays['image_ids']) > 0
  added = (results / 'log.txt').read_text().removeprefix(log)
  assert added.count('Total inference time: ') == 2
  assert added.count('Evaluation at step 4: box AP') == 1

  for mode in ('train', 'inference'):
    done = command(
      f'{mode}_benchmark.sh',
      'float16',
      '1,2',
      recipe,
      '--size=64x64',
      '--steps=1',
      **environment,
    )
    assert done.returncode == 0, done.stderr
    *_, first, second, last = done.stdout.splitlines()
    assert first.split()[:2] == ['1', '1'] and first.split()[3] == '1.00'
    assert second.split()[:2] == ['2', '1']
    assert last == f'{second.split()[2]} images/s'
    assert f'{mode} 64x64, batch 2, fp16, 2 x cpu: ' in done.stdout
