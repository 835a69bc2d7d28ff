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

# Moves the files of folder $1 in $new to $dir, which has that folder already. A
# different file of annotations is kept under another name, because the user may
# have changed it.
merge() {
  local file old
  for file in "$new/$1"/*.json; do
    old=$dir/$1/${file##*/}
    if [[ -s $old ]] && ! cmp -s "$file" "$old"; then
      mv "$old" "$old.old"
      tell "$old is not the file of COCO; it is now $old.old"
    fi
  done
  find "$new/$1" -type f -exec sh -c 'mv -f "$@" "$0"' "$dir/$1" {} +
}

# Files get their place only when they are complete.
new=$dir/.unpacking
for i in "${!paths[@]}"; do
  is_unpacked "$i" && continue
  archive=$dir/${paths[i]##*/} folder=${folders[i]}
  tell "Unpacking $archive"
  rm -rf "$new"
  mkdir "$new"
  if command -v unzip > /dev/null; then
    unzip -q "$archive" -d "$new"
  else
    "${PYTHON:-python3}" -m zipfile -e "$archive" "$new"
  fi || { rm -rf "$new"; status=1 fail "cannot unpack $archive; is the disk" \
    "full?"; }
  if [[ -d $dir/$folder ]]; then merge "$folder"; else mv "$new/$folder" "$dir"; fi
  rm -rf "$new"
  is_unpacked "$i" || status=1 fail "$archive is unpacked, but" \
    "$dir/$folder does not have all files of COCO."
done
tell "COCO $year is in $dir: $(printf '%s ' "${folders[@]}")"
