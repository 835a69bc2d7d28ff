# Sourced by {download,verify,extract}_dataset.sh: reads their arguments and the
# table of archives.

tell() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit "${status:-2}"; }

# Address of the archives. It is plain http, because the host's certificate is
# for another name; the archives are checked by their MD5. A mirror must have
# the same paths.
base_url=${COCO_URL:-http://images.cocodataset.org}
table=${COCO_ARCHIVES:-$(dirname "${BASH_SOURCE[0]}")/coco_archives.txt}

# Sets dir and year from the arguments of the script, and the arrays paths,
# bytes, sums, folders and counts: the columns of the table, in the order of the
# download.
read_arguments() {
  if (( $# < 1 || $# > 2 )) || [[ $1 == -* ]]; then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
    [[ ${1:-} == --help || ${1:-} == -h ]] && exit 0
    exit 2
  fi
  dir=$1
  year=${2:-2017}
  paths=() bytes=() sums=() folders=() counts=()
  local y path size sum folder count
  while read -r y path size sum folder count; do
    [[ $y == "$year" ]] || continue
    paths+=("$path") bytes+=("$size") sums+=("$sum")
    folders+=("$folder") counts+=("$count")
  done < "$table"
  (( ${#paths[@]} )) || fail "there is no COCO $year; give 2014 or 2017."
}

# Prints the number of bytes of file $1; 0 if it does not exist.
size_of() { if [[ -f $1 ]]; then wc -c < "$1" | tr -d ' '; else echo 0; fi; }

# Succeeds if archive number $1 of the table is completely unpacked, by the
# number of its files.
is_unpacked() {
  local folder=$dir/${folders[$1]} split
  if [[ ${counts[$1]} == - ]]; then
    for split in train val; do
      [[ -s $folder/instances_$split$year.json ]] || return 1
    done
  else
    [[ -d $folder ]] || return 1
    (( $(find "$folder" -type f -size +0 | wc -l) == counts[$1] ))
  fi
}
