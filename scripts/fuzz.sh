#!/usr/bin/env bash
# Runs every fuzz target of the module for a while: scripts/fuzz.sh [TIME], 5s by default.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-5s}
ran=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
while read -r pkg; do
  dir=$(go list -f '{{.Dir}}' "$pkg")
  for target in $(grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed 's/^func //' | sort -u); do
    echo "fuzz $pkg $target $time"
    go test "$pkg" -run '^$' -fuzz "^$target\$" -fuzztime "$time" >"$log" 2>&1 || { cat "$log"; exit 1; }
    ran=$((ran + 1))
  done
done < <(go list ./...)
[ "$ran" -gt 0 ] || { echo "no fuzz target found"; exit 1; }
echo "$ran fuzz targets ran $time each"
