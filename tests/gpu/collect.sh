#!/usr/bin/env bash
# Append the next part to the archive outside the tree; with the last, check it and unpack it.
# usage: collect.sh FOLDER PART...       the parts in their order; SHA256SUMS beside each
set -euo pipefail
folder=$1
shift
mkdir -p "$folder"
for part in "$@"; do
    expected=$(awk -v name="${part##*/}" '$2 == name {print $1}' "$(dirname "$part")/SHA256SUMS")
    echo "$expected  $part" | sha256sum --check --quiet
    number=$((10#${part##*-}))
    have=$(cat "$folder/have" 2>/dev/null || echo 0)
    if [ "$number" -ne $((have + 1)) ]; then
        echo "part $number was given, part $((have + 1)) is next" >&2
        exit 65
    fi
    cat "$part" >>"$folder/archive.tar"
    echo "$number" >"$folder/have"
done
last=$(awk '$2 ~ /^part-/ {n++} END {print n}' "$(dirname "$1")/SHA256SUMS")
if [ "$(cat "$folder/have")" -lt "$last" ]; then
    echo "$(cat "$folder/have") of $last parts"
    exit 0
fi
whole=$(awk '$2 == "archive.tar" {print $1}' "$(dirname "$1")/SHA256SUMS")
echo "$whole  $folder/archive.tar" | sha256sum --check --quiet
tar -xf "$folder/archive.tar" -C "$folder"
rm "$folder/archive.tar"
shopt -s nullglob
wheels=("$folder"/wheels/*.whl)
mkdir -p "$folder/site"
[ ${#wheels[@]} -eq 0 ] || python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$folder/site" "${wheels[@]}"
echo "all $last parts: unpacked in $folder"
