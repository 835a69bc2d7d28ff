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

# Prints a line "size name" for each file in archive $1, in order of these lines.
# No name in COCO's archives has a space.
list_archive() {
  if command -v unzip > /dev/null; then
    unzip -l "$1" | awk 'NF == 4 && $1 ~ /^[0-9]+$/ && $4 !~ /\/$/ {
      print $1, $4 }'
  else
    "${PYTHON:-python3}" -m zipfile -l "$1" |
      awk 'NR > 1 && $1 !~ /\/$/ { print $NF, $1 }'
  fi | LC_ALL=C sort
}

# Does the same for the files of folder $2 in directory $1.
list_folder() {
  ls -ln "$1/$2" | awk -v folder="$2" '/^-/ { print $5, folder "/" $NF }' |
    LC_ALL=C sort
}

# Succeeds if archive number $1 of the table is completely unpacked. As long as
# the archive is there, the sizes of all files must be those in the archive.
# Later, the number of the images must be right, and the annotations must not
# end too early.
is_unpacked() {
  local folder=${folders[$1]} archive=$dir/${paths[$1]##*/} split file
  [[ -d $dir/$folder ]] || return 1
  if [[ -f $archive ]]; then
    [[ -z $(LC_ALL=C comm -23 <(list_archive "$archive") \
      <(list_folder "$dir" "$folder")) ]]
  elif [[ ${counts[$1]} == - ]]; then
    for split in train val; do
      file=$dir/$folder/instances_$split$year.json
      [[ -s $file && $(tail -c 9 "$file" | tr -d '[:space:]') == *'}' ]] ||
        return 1
    done
  else
    (( $(find "$dir/$folder" -type f -size +0 | wc -l) == counts[$1] ))
  fi
}
