"""Tests of the launch scripts, with stand-ins for ssh and srun."""

import os
import pathlib
import stat
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def stand_in(tmp_path):
  """Returns a function that writes a program to be found before the real one.

  The function returns the environment variable PATH that has this effect.
  """

  def write(name, script):
    path = tmp_path / name
    path.write_text(f'#!/usr/bin/env bash\n{script}')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {'PATH': f'{tmp_path}:{os.environ["PATH"]}'}

  return write


def launch(script, *arguments, environment):
  return subprocess.run(
    ['bash', str(ROOT / 'scripts' / script), *arguments],
    timeout=30,
    env=os.environ | environment,
    capture_output=True,
    text=True,
  )


def test_launch_ssh_starts_a_process_on_each_host(stand_in, tmp_path):
  path = stand_in('ssh', f'echo "$3" > {tmp_path}/$2')
  done = launch(
    'launch_ssh.sh',
    '--config=a b.py',
    '--workdir=/runs/1',
    environment=path | {'HOSTS': 'node1 node2', 'PORT': '1234'},
  )
  assert done.returncode == 0, done.stderr
  for i in (1, 2):
    words = ' '.join((tmp_path / f'node{i}').read_text().split())
    assert words.startswith(f'cd {ROOT} && exec .venv/bin/python -m maskrcnn')
    assert words.endswith(
      r'--config=a\ b.py --workdir=/runs/1 --coordinator=node1:1234 '
      f'--num_processes=2 --process_id={i - 1}'
    )


def test_launch_ssh_ends_all_when_one_fails(stand_in, tmp_path):
  path = stand_in(
    'ssh',
    f"""
if [[ $2 == node1 ]]; then
  trap 'kill $!; touch {tmp_path}/ended; exit' TERM
  sleep 60 > /dev/null 2>&1 & wait
fi
exit 3
""",
  )
  started = time.monotonic()
  done = launch(
    'launch_ssh.sh',
    '--config=a',
    environment=path | {'HOSTS': 'node1 node2'},
  )
  assert done.returncode == 3
  assert time.monotonic() - started < 25
  for _ in range(50):
    if (tmp_path / 'ended').exists():
      return
    time.sleep(0.1)
  pytest.fail('node1 was not told to end')


@pytest.mark.parametrize(
  ('hosts', 'arguments'), [('', ['--config=a']), ('node1', [])]
)
def test_launch_ssh_says_how_it_is_used(hosts, arguments):
  done = launch('launch_ssh.sh', *arguments, environment={'HOSTS': hosts})
  assert done.returncode == 2
  assert done.stderr.startswith('usage: HOSTS=')


def test_launch_slurm_gives_its_arguments_to_srun(stand_in, tmp_path):
  path = stand_in('srun', 'printf "%s|" "$@"')
  (tmp_path / '.venv' / 'bin').mkdir(parents=True)
  (tmp_path / '.venv' / 'bin' / 'activate').touch()
  done = launch(
    'launch_slurm.sh',
    '--config=a b.py',
    environment=path | {'SLURM_SUBMIT_DIR': str(tmp_path)},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith('|-m|maskrcnn_jax.main|--config=a b.py|')
