#!/usr/bin/env bash
# Makes the environment if it is missing, checks the code, and runs the tests.
#
#   bash scripts/test.sh                          the default tier
#   bash scripts/test.sh -m slow                  the tests that take minutes
#   bash scripts/test.sh tests/test_imports.py    one file
#   JAX_PLATFORMS=cuda bash scripts/test.sh -m gpu -n 0
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
tell 'pytest'
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
.venv/bin/python -m pytest -q -p no:cacheprovider -n 2 --dist worksteal "$@"
if (( lint )); then
  echo 'The tests passed, but not a check of the code (above).' >&2
fi
exit $lint
