#!/usr/bin/env bash
# Breaks each rule of probing, matching, selecting and decoding in a copy of the tree (mutate/*.patch) and expects the
# test that the patch names to fail. scripts/mutate.sh [NAME…] runs only those; as many at once as there are processors.
# scripts/mutate.sh --check only tells whether every patch applies and names a test that exists.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1:-}" = --check ]; then
  bad=0 all=(mutate/*.patch)
  for patch in "${all[@]}"; do
    read -r _ _ pkg test < <(grep -m1 '^must fail:' "$patch")
    git apply --check "$patch" || bad=1
    grep -qE "^func ($test|${test%%/*})\(" "$pkg"/*_test.go || { echo "$patch names a test that is not there: $test"; bad=1; }
  done
  [ "$bad" -eq 0 ] && echo "${#all[@]} mutations apply"
  exit "$bad"
fi

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
export dir GIT_CEILING_DIRECTORIES=$dir # git apply works on the copies, whatever lies above them

# mutation NAME runs one mutation in the copy that is free, and says what became of it.
mutation() {
  local name=$1 patch pkg test out copy verdict=killed
  patch=$PWD/mutate/$name.patch
  until copy=$(ls "$dir"/free | head -1) && [ -n "$copy" ] && mv "$dir/free/$copy" "$dir/busy/" 2>/dev/null; do sleep 0.1; done
  read -r _ _ pkg test < <(grep -m1 '^must fail:' "$patch")
  cd "$dir/busy/$copy"
  if ! git apply <"$patch"; then
    echo "BROKEN $name does not apply any more"
    verdict=broken
  else
    if out=$(go test -count=1 -run "^$test\$" "$pkg" 2>&1); then
      echo "SURVIVED $name: $test passes"
      verdict=survived
    elif ! grep -q -- "--- FAIL: $test" <<<"$out" && ! grep -q 'panic' <<<"$out"; then
      echo "BROKEN $name does not build:"; echo "$out"
      verdict=broken
    fi
    git apply -R <"$patch"
  fi
  cd - >/dev/null
  mv "$dir/busy/$copy" "$dir/free/"
  touch "$dir/$verdict/$name"
}
export -f mutation

mkdir "$dir"/free "$dir"/busy "$dir"/killed "$dir"/survived "$dir"/broken
for copy in $(seq "$(nproc)"); do
  mkdir "$dir/free/$copy"
  git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$dir/free/$copy" 2>/dev/null || true
done
for patch in mutate/*.patch; do
  name=$(basename "$patch" .patch)
  if [ $# -eq 0 ] || [[ " $* " == *" $name "* ]]; then echo "$name"; fi
done | xargs -P "$(nproc)" -I NAME bash -c 'set -e; mutation NAME || exit 255'
survived=$(ls "$dir/survived" | wc -l) killed=$(ls "$dir/killed" | wc -l) broken=$(ls "$dir/broken" | wc -l)
echo "$killed mutations noticed, $survived survived, $broken broken"
[ "$survived" -eq 0 ] && [ "$broken" -eq 0 ] && [ "$killed" -gt 0 ]
