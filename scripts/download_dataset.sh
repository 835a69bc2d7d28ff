#!/usr/bin/env bash
# Downloads COCO, checks it and unpacks it.
#
#   bash scripts/download_dataset.sh DIR [2014|2017]
#
# DIR gets the folders annotations/, train2017/ and val2017/; the recipes expect
# data/coco. Either year needs 43 GB; the default is 2017. Half of it are the
# archives, which can be deleted afterwards. If the script is run again, it
# continues where it stopped. The variable COCO_URL names a mirror.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
source "$here/coco_archives.sh"
read_arguments "$@"
command -v curl > /dev/null || fail 'curl is missing; install it.'
mkdir -p "$dir" || fail "cannot make the folder $dir."

# Bytes still to be written: archives and the files in them. JPEGs are as large
# as in their archive; annotations are less than four times as large.
needed=0
for i in "${!paths[@]}"; do
  is_unpacked "$i" && continue
  archive=$dir/${paths[i]##*/}
  there=$(( $(size_of "$archive") + $(size_of "$archive.part") ))
  unpacked=$(( ${counts[i]/#-/0} ? bytes[i] * 21 / 20 : bytes[i] * 4 ))
  needed=$(( needed + bytes[i] - there + unpacked ))
done
free=$(( $(df -Pk "$dir" | awk 'NR == 2 { print $4 }') * 1024 ))
(( free > needed )) || fail "$dir has $(( free / 1000000 )) MB free, but COCO" \
  "$year needs $(( needed / 1000000 )) MB; make room or give another DIR."

# Downloads $1 to file $2 of $3 bytes. A server may end a long download many
# times; as long as an attempt gets further, there is another one.
fetch() {
  local url=$1 part=$2 size=$3 before after idle=0 code
  while after=$(size_of "$part") && (( after < size )); do
    before=$after
    code=0
    curl --fail --location --silent --show-error --connect-timeout 30 \
      --speed-limit 1000 --speed-time 60 --continue-at - \
      --output "$part" "$url" || code=$?
    after=$(size_of "$part")
    (( after < size )) || break
    tell "got $after of $size bytes of ${url##*/}; continuing"
    if (( after > before )); then idle=0; else idle=$(( idle + 1 )); fi
    if (( idle >= ${COCO_ATTEMPTS:-5} )); then
      status=1 fail "$url gives nothing more (curl's status $code). Run again" \
        "later; the bytes received so far are kept."
    fi
    sleep "$idle"
  done
  (( after == size )) || status=1 fail "$part has $after bytes, more than the" \
    "published $size. Remove it and run again."
}

for i in "${!paths[@]}"; do
  is_unpacked "$i" && continue
  archive=$dir/${paths[i]##*/}
  [[ -f $archive ]] && continue
  tell "Downloading $base_url/${paths[i]} ($(( bytes[i] / 1000000 )) MB)"
  fetch "$base_url/${paths[i]}" "$archive.part" "${bytes[i]}"
  mv "$archive.part" "$archive"
done
bash "$here/extract_dataset.sh" "$dir" "$year"
