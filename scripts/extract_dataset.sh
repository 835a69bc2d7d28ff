#!/usr/bin/env bash
# Checks COCO's archives in DIR and unpacks them there.
#
#   bash scripts/extract_dataset.sh DIR [2014|2017]
#
# Archives that are already unpacked are skipped.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/coco_archives.sh"
read_arguments "$@"

# A damaged archive must not become a damaged data set.
bash "$here/verify_dataset.sh" "$dir" "$year"

for i in "${!paths[@]}"; do
  is_unpacked "$i" && continue
  archive=$dir/${paths[i]##*/}
  tell "Unpacking $archive"
  if command -v unzip > /dev/null; then
    unzip -q -o "$archive" -d "$dir"
  else
    "${PYTHON:-python3}" -m zipfile -e "$archive" "$dir"
  fi || status=1 fail "cannot unpack $archive; is the disk full?"
  is_unpacked "$i" || status=1 fail "$archive is unpacked, but" \
    "$dir/${folders[i]} does not have the ${counts[i]} files of COCO."
done
tell "COCO $year is in $dir: $(printf '%s ' "${folders[@]}")"
