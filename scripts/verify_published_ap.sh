#!/usr/bin/env bash
# Evaluates published weights on COCO val2017 and compares with the published AP.
#
#   bash scripts/verify_published_ap.sh [COCO] [OUT] [FLAG ...]
#
# COCO, by default data/coco, has val2017/ and annotations/, as
# scripts/download_dataset.sh makes them. Each model is downloaded at its first
# use and evaluated; OUT/MODEL has its results, and OUT/published_ap.md, by
# default in published_ap/, gets a table with PASS or FAIL. The exit status is 0
# if all pass, 1 if one fails.
#
# The variable NAMES restricts the models, for example
# NAMES='torchvision:maskrcnn_resnet50_fpn_v2 detectron2:mask_rcnn_R_50_FPN_3x';
# `python -m maskrcnn_jax.main --list_weights` lists all names. NAMES may also
# hold checkpoints, whose AP is compared with --config.expected.
#
# A FLAG is any flag of `python -m maskrcnn_jax.main --mode=eval`, for example
# --config.eval.batch_size=8.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"
show_help "$@"

coco=data/coco out=published_ap
if (( $# )) && [[ $1 != -* ]]; then coco=$1; shift; fi
if (( $# )) && [[ $1 != -* ]]; then out=$1; shift; fi
images=$coco/val2017 annotations=$coco/annotations/instances_val2017.json
[[ -d $images && -f $annotations ]] ||
  fail "$coco needs the folder val2017 and annotations/instances_val2017.json;" \
    'bash scripts/download_dataset.sh makes them'

names=${NAMES:-$("$python" -c '
from maskrcnn_jax.named_weights import TABLE
print(*(row.name for row in TABLE if row.box_ap is not None))')}

mkdir -p "$out"
table=$out/published_ap.md status=0
{
  echo '| weights | box AP, published | here | mask AP, published | here | |'
  echo '|---|---|---|---|---|---|'
} > "$table"
for name in $names; do
  folder=$out/${name//[^A-Za-z0-9_.-]/_}
  mkdir -p "$folder"
  echo "$name: its log is $folder/verify.txt"
  result='' cells=''
  if "$python" -m maskrcnn_jax.main --mode=eval --checkpoint="$name" \
      --workdir="$folder" --config.data.eval.images="$images" \
      --config.data.eval.annotations="$annotations" "$@" \
      > "$folder/verify.txt" 2>&1; then
    for kind in box mask; do
      # PASS: box AP 0.4741, expected 0.4740 within 0.0020 (config.expected)
      line=$(grep -E "^(PASS|FAIL): $kind AP " "$folder/verify.txt" || true)
      [[ -z $line || $result == FAIL ]] || result=${line%%:*}
      cells+=$(sed -E 's/.* AP ([^,]*), expected ([^ ]*) .*/ \2 | \1 |/' \
        <<< "${line:-. AP , expected  .}")
    done
    result=${result:-nothing to compare with}
  else
    result="ERROR: $(grep -m1 '^error: ' "$folder/verify.txt" ||
      echo "see $folder/verify.txt")"
    cells=' | | | |'
  fi
  [[ $result == PASS ]] || status=1
  echo "| \`$name\` |$cells $result |" >> "$table"
  echo "$result"
done
cat "$table"
exit "$status"
