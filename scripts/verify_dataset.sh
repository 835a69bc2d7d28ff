#!/usr/bin/env bash
# Checks COCO's archives by their MD5, and unpacked folders by their file count.
#
#   bash scripts/verify_dataset.sh DIR [2014|2017]
#
# Exit status: 0 all is correct, 1 something is damaged or missing.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/coco_archives.sh"
read_arguments "$@"

md5_of() {
  if command -v md5sum > /dev/null; then md5sum < "$1"; else md5 -q < "$1"; fi |
    cut -d ' ' -f 1
}

wrong=0
for i in "${!paths[@]}"; do
  name=${paths[i]##*/}
  archive=$dir/$name
  if [[ -f $archive ]]; then
    found=$(md5_of "$archive")
    if [[ $found == "${sums[i]}" ]]; then
      tell "$name: correct"
    else
      echo "error: $archive has MD5 $found, not the published ${sums[i]};" \
        "remove it and download it again." >&2
      wrong=1
    fi
  elif is_unpacked "$i"; then
    tell "${folders[i]}: unpacked and complete"
  else
    echo "error: neither $archive nor all files of $dir/${folders[i]} exist;" \
      "run scripts/download_dataset.sh $dir $year." >&2
    wrong=1
  fi
done
exit "$wrong"
