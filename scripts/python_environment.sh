# Sourced by the other scripts, in the root of the project. make_environment
# makes .venv with all packages that training and the tests need, if it is
# missing or not up to date.

tell() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

# The command of a version manager may exist although no Python is installed for
# it, so each candidate is run.
is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}
can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# Prints the path of the first usable Python; fails with advice if there is
# none.
find_python() {
  local candidates=(python3 python3.13 python3.12)
  local candidate without_venv=''
  if [[ -n "${PYTHON:-}" ]]; then
    candidates=("$PYTHON")
  else
    candidates+=("${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python)
    candidates+=("$HOME"/.pyenv/versions/*/bin/python)
  fi
  for candidate in "${candidates[@]}"; do
    is_new_enough "$candidate" || continue
    if can_make_venv "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
    without_venv=${without_venv:-$candidate}
  done

  if [[ -n "$without_venv" ]]; then
    fail "$without_venv cannot make virtual environments. Install its venv" \
      "module (Debian, Ubuntu: apt-get install python3-venv) and run again."
  elif [[ -n "${PYTHON:-}" ]]; then
    fail "PYTHON=$PYTHON does not run or is older than Python 3.12."
  fi
  fail "no Python 3.12 or newer found. Install one (Debian, Ubuntu:" \
    "apt-get install python3.12 python3.12-venv; pyenv: pyenv install 3.12;" \
    "or from python.org), or name one: PYTHON=/path/to/python3.12 bash $0"
}

# Prints a checksum of everything that decides which packages are installed:
# after a change, the packages must be installed again.
wanted_state() {
  .venv/bin/python - <<'PYTHON'
import hashlib, os, pathlib, sys
digest = hashlib.sha256(sys.version.encode())
digest.update(os.environ.get('JAX_VERSION', '').encode())
for name in ('requirements.lock', 'setup.cfg', 'pyproject.toml'):
  digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON
}

is_locked_platform() {
  .venv/bin/python - <<'PYTHON'
import platform, sys
here = sys.version_info[:2], platform.system(), platform.machine()
sys.exit(
  here != ((3, 12), 'Linux', 'x86_64') or platform.libc_ver()[0] != 'glibc'
)
PYTHON
}

make_environment() {
  local python stamp=.venv/.installed
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    tell "Making .venv with $("$python" --version) ($python)"
    "$python" -m venv .venv
  fi
  is_new_enough .venv/bin/python || fail "the Python in .venv is older than" \
    "3.12. Remove that folder (rm -r .venv) and run again."

  if [[ "$(cat "$stamp" 2>/dev/null)" == "$(wanted_state)" ]]; then
    return
  fi
  # Python compiles the modules that it imports. Compiling all modules of all
  # packages would take as long as the rest of the installation.
  local pip=(.venv/bin/python -m pip --disable-pip-version-check install -q
    --no-compile)
  if [[ -n "${JAX_VERSION:-}" ]]; then
    tell "Installing JAX $JAX_VERSION and, by the ranges of setup.cfg, all else" \
      'into .venv (about 1 minute)'
    "${pip[@]}" -e '.[test]' "jax==$JAX_VERSION"
  elif is_locked_platform; then
    tell 'Installing requirements.lock into .venv (about 1 minute)'
    "${pip[@]}" --require-hashes -r requirements.lock
    "${pip[@]}" --no-deps -e .
  else
    tell 'Installing by the ranges of setup.cfg into .venv (about 1 minute);' \
      'requirements.lock is for Python 3.12 on Linux x86_64 only'
    "${pip[@]}" -e '.[test]'
  fi
  wanted_state > "$stamp"
}
