#!/usr/bin/env bash
# Runs every fuzz target of the module for a while: scripts/fuzz.sh [TIME], 5s by default.
#
# Up to Go 1.26 the fuzzing engine itself sometimes fails at the very end of a time given,
# with "context deadline exceeded" and no input (golang/go#75804): such a run, and only
# such, says nothing and is done again, at most twice.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-5s}
ran=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# fuzz PKG TARGET runs one target and leaves what it printed in $log.
fuzz() {
  go test "$1" -run '^$' -fuzz "^$2\$" -fuzztime "$time" >"$log" 2>&1
}

# out_of_time reports whether the run in $log failed by the engine's own deadline alone:
# a bare line of it under the FAIL line, and neither an input nor a panic nor a test's word.
out_of_time() {
  [ "$(grep -A1 '^--- FAIL' "$log" | tail -n +2)" = "    context deadline exceeded" ] &&
    ! grep -qE 'Failing input|panic|_test\.go:|DATA RACE' "$log"
}

while read -r pkg; do
  dir=$(go list -f '{{.Dir}}' "$pkg")
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed 's/^func //' | sort -u); do
    echo "fuzz $pkg $target $time"
    for again in 1 2 0; do
      fuzz "$pkg" "$target" && break
      [ "$again" -gt 0 ] && out_of_time || { cat "$log"; exit 1; }
      echo "fuzz $pkg $target: the engine missed its own deadline, again"
    done
    ran=$((ran + 1))
  done
done < <(go list ./...)
[ "$ran" -gt 0 ] || { echo "no fuzz target found"; exit 1; }
echo "$ran fuzz targets ran $time each"
