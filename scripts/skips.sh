#!/usr/bin/env bash
# A test that skips itself must do so by nstest.Skip or labtest, which fail where
# SERVICE_TRACEROUTE_NO_SKIP=1. Says which tests may do otherwise, and fails when others do. So it
# does when a test that is only built with the tag peers is not among those that peers.sh runs.
set -euo pipefail
cd "$(dirname "$0")/.."

# Of each file how often, and what.
declare -A may=(
  [guest_links_linux_test.go]="1 TestBondSeesTwice, on a kernel without bonds; TestFailover does with a bridge what a bond does"
  [lab_test.go]="1 tests that take long, without SERVICE_TRACEROUTE_NO_SKIP"
  [internal/lab/lifecycle_test.go]="1 nothing: it is a test of skipping"
  [internal/lab/labtest/labtest.go]="2 labs, in short runs and without SERVICE_TRACEROUTE_NO_SKIP"
  [internal/lab/nstest/nstest.go]="2 namespaces, in short runs and without SERVICE_TRACEROUTE_NO_SKIP"
)
bad=0
while IFS=: read -r file n; do
  read -r times what <<<"${may[$file]:-0 nothing}"
  if [ "$n" -eq "$times" ]; then
    echo "may be skipped: $what"
  else
    echo "$file skips by itself $n times, not $times: use nstest.Skip or labtest" >&2
    bad=1
  fi
done < <(git grep -cE '\b(t|tb|b|f)\.(Skip|Skipf|SkipNow)\(' -- '*.go')
if git grep -nE '(^|\] *)skip\b' -- '*.txtar' | grep -v '\[may-skip\] skip'; then
  echo "these scripts skip where SERVICE_TRACEROUTE_NO_SKIP=1, too: put [may-skip] before skip" >&2
  bad=1
fi
run=$(grep -oP "(?<=-run ')[^']*" scripts/peers.sh)
if git grep -hoP '^func \KTest\w+' -- $(git grep -l '^//go:build.*peers' -- '*_test.go') | grep -vE "$run"; then
  echo "scripts/peers.sh does not run these" >&2
  bad=1
fi
exit $bad
