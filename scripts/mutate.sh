#!/usr/bin/env bash
# Breaks each rule of probing and matching in a copy of the tree (mutate/*.patch) and expects the test that
# the patch names to fail. scripts/mutate.sh [NAME…] runs only those.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export GIT_CEILING_DIRECTORIES=${dir%/*} # git apply works on the copy, whatever lies above it
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$dir" 2>/dev/null || true
survived=0 killed=0
for patch in mutate/*.patch; do
  name=$(basename "$patch" .patch)
  if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
  read -r _ _ pkg test < <(grep -m1 '^must fail:' "$patch")
  if ! (cd "$dir" && git apply) <"$patch"; then
    echo "mutate: $name does not apply any more"
    exit 1
  fi
  if out=$(cd "$dir" && go test -count=1 -run "^$test\$" "$pkg" 2>&1); then
    echo "SURVIVED $name: $test passes"
    survived=$((survived + 1))
  elif ! grep -q -- "--- FAIL: $test" <<<"$out" && ! grep -q 'panic' <<<"$out"; then
    echo "mutate: $name does not build:"; echo "$out"
    exit 1
  else
    killed=$((killed + 1))
  fi
  (cd "$dir" && git apply -R) <"$patch"
done
echo "$killed mutations noticed, $survived survived"
[ "$survived" -eq 0 ] && [ "$killed" -gt 0 ]
