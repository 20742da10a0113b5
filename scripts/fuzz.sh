#!/usr/bin/env bash
# Runs every fuzz target of the module for a while: scripts/fuzz.sh [TIME], 5s by default;
# as many at once as there are processors, each on one.
#
# Up to Go 1.26 the fuzzing engine itself sometimes fails at the very end of a time given,
# with "context deadline exceeded" and no input (golang/go#75804): such a run, and only
# such, says nothing and is done again, at most twice.
set -euo pipefail
cd "$(dirname "$0")/.."
export time=${1:-5s}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cache=$(go env GOCACHE)/fuzz
export work cache

# out_of_time reports whether the run in a log failed by the engine's own deadline alone:
# a bare line of it under the FAIL line, and neither an input nor a panic nor a test's word.
out_of_time() {
  [ "$(grep -A1 '^--- FAIL' "$1" | tail -n +2)" = "    context deadline exceeded" ] &&
    ! grep -qE 'Failing input|panic|_test\.go:|DATA RACE' "$1"
}

# fuzz PKG DIR TARGET runs one target, and prints what it printed if it failed.
fuzz() {
  local log again
  log=$work/${1//\//_}.$3
  echo "fuzz $1 $3 $time"
  for again in 1 2 0; do
    if (cd "$2" && "$work/$(program "$1")" -test.paniconexit0 -test.run '^$' -test.fuzz "^$3\$" -test.fuzztime "$time" \
      -test.fuzzminimizetime 5x -test.parallel 1 -test.fuzzcachedir "$cache/$1") >"$log" 2>&1; then
      return
    fi
    if [ "$again" -eq 0 ] || ! out_of_time "$log"; then
      cat "$log"
      return 1
    fi
    echo "fuzz $1 $3: the engine missed its own deadline, again"
  done
}

program() { echo "${1//\//_}.test"; }
export -f fuzz out_of_time program

targets() {
  local pkg dir
  go list -f '{{.ImportPath}} {{.Dir}}' ./... | while read -r pkg dir; do
    (grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null || true) | sed "s|^func |$pkg $dir |" | sort -u
  done
}

all=$(targets)
[ -n "$all" ] || { echo "no fuzz target found"; exit 1; }
# Each package is built once for all its targets, and one after the other: two at once would
# both compile what they share.
cut -d' ' -f1 <<<"$all" | uniq | while read -r pkg; do
  go test -c -fuzz . -o "$work/$(program "$pkg")" "$pkg"
done
# One that fails ends all: xargs starts nothing more after a status of 255.
xargs -P "$(nproc)" -L 1 bash -c 'fuzz "$0" "$1" "$2" || exit 255' <<<"$all"
echo "$(wc -l <<<"$all") fuzz targets ran $time each"
