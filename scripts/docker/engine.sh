# Sourced by build.sh and interactive.sh: prints their help and sets engine, the
# program that runs containers, and root, the folder of the project.

fail() { printf 'error: %s\n' "$*" >&2; exit 2; }

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
  exit 0
fi
engine=${DOCKER:-docker}
command -v "$engine" > /dev/null || fail "there is no $engine here; install" \
  'it, or name another program: DOCKER=podman bash ...'
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
