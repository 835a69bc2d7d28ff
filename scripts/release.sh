#!/usr/bin/env bash
# Builds a release and tries it:
#
#   bash scripts/release.sh          checks, builds, tries
#   bash scripts/release.sh --tag    the same, and then makes the tag vX.Y.Z
#
# The version X.Y.Z is the one in maskrcnn_jax/__init__.py. The script
#   1. checks that everything is committed, that CHANGELOG.md has a section
#      "## X.Y.Z - YYYY-MM-DD", and that neither the tag vX.Y.Z is at another
#      commit nor another version's tag at this one;
#   2. builds the source distribution and the wheel of the last commit into dist/;
#   3. tries the wheel in an empty environment: see scripts/try_wheel.sh;
#   4. prints the SHA-256 of both files and writes them to dist/SHA256SUMS.
# It needs git, Python 3.12 or newer, and the network for packages; it takes about
# five minutes. Exit status: 0 all is well, 1 a step failed, 2 a check failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/python_environment.sh

makes_tag=''
case "$*" in
  '') ;;
  --tag) makes_tag=1 ;;
  -h | --help)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
  *) fail "$* is not understood; see --help" ;;
esac

version=$(sed -n "s/^__version__ = '\(.*\)'$/\1/p" maskrcnn_jax/__init__.py)
tag=v$version
[[ "$version" =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] ||
  fail "the version in maskrcnn_jax/__init__.py is '$version', not X.Y.Z."
[[ -z "$(git status --porcelain)" ]] ||
  fail 'there are changes that are not committed; see git status.'
grep -qE "^## ${version//./\\.} - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md ||
  fail "CHANGELOG.md has no section '## $version - YYYY-MM-DD'."
tagged=$(git rev-parse --quiet --verify "refs/tags/$tag^{commit}" || true)
[[ -z "$tagged" || "$tagged" == "$(git rev-parse HEAD)" ]] ||
  fail "the tag $tag is at another commit; a released version never changes," \
    'so raise the version.'
others=$(git tag --points-at HEAD 'v*' | grep -vxF "$tag" || true)
[[ -z "$others" ]] ||
  fail "this commit has the tag $others, but its version is $version."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$(find_python)
unset PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1

tell "Building $version into dist/"
mkdir "$work/source"
# Only committed files count: an old *.egg-info, for example, would add files.
git archive HEAD | tar -x -C "$work/source"
"$python" -m venv "$work/build"
"$work/build/bin/pip" install -q build
rm -rf dist
# With the times of the commit, the same source gives the same wheel.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) "$work/build/bin/python" \
  -m build --outdir dist "$work/source" > "$work/build.log" ||
  { cat "$work/build.log" >&2; exit 1; }
sdist=$PWD/dist/maskrcnn_jax-$version.tar.gz
wheel=$PWD/dist/maskrcnn_jax-$version-py3-none-any.whl
[[ -f "$sdist" && -f "$wheel" ]] || { ls dist >&2; exit 1; }

bash scripts/try_wheel.sh "$wheel" "$python"

(cd dist && sha256sum "${sdist##*/}" "${wheel##*/}" > SHA256SUMS)
if [[ -n "$makes_tag" && -z "$tagged" ]]; then
  git tag -a "$tag" -m "Version $version"
  tell "Made the tag $tag; push it with: git push origin $tag"
fi
tell "Version $version is in dist/:"
cat dist/SHA256SUMS
