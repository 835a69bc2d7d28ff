#!/usr/bin/env bash
# Makes the environment if it is missing, checks the code (ruff, mypy) and runs
# the tests.
#
#   bash scripts/test.sh                          the default tier
#   bash scripts/test.sh -m slow                  the slow tests, hours in total
#   bash scripts/test.sh tests/test_imports.py    one file
#   JAX_PLATFORMS=cuda bash scripts/test.sh -m gpu -n 0
#   JAX_VERSION=0.11.1 bash scripts/test.sh       with this version of JAX
#
# JAX_VERSION installs that version of JAX into .venv, and the other packages by
# the ranges of setup.cfg. Without it, the versions of requirements.lock are
# installed, or the newest in these ranges if the lock is not for this platform.
#
# The arguments are passed to pytest; paths are relative to the project's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/python_environment.sh

make_environment
lint=0
tell 'ruff check, ruff format'
.venv/bin/python -m ruff check --quiet --output-format concise . || lint=$?
.venv/bin/python -m ruff format --quiet --check . || lint=$?
tell 'mypy'
.venv/bin/python -m mypy || lint=$?
tell 'pytest'
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
.venv/bin/python -m pytest -q -p no:cacheprovider -n 2 --dist worksteal "$@"
if (( lint )); then
  echo 'The tests passed, but a check of the code (above) failed.' >&2
fi
exit $lint
