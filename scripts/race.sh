#!/usr/bin/env bash
# The race detector over everything but labs. Where tests that open some are beside
# others, as those of the loop, of control and of connections are, -short skips them.
# Everywhere else namespaces are cheap, and the ring, the sender and the search for
# owners are not to be had without.
# It needs cgo and a C compiler; where there is none and apt-get can, it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v gcc >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq gcc libc6-dev >/dev/null
fi
labs='^servicetraceroute$|/internal/lab(/|$)'
nothing='/internal/(demo|selftest|whole)$' # is left of these without labs
# Crowds and long transfers in memory, and what shells make of the command's words, take
# ten times as long here, and use no goroutine that the others do not.
long='TestTracedFlowIsSmall|TestIdleFlowIsSmall|TestLies|TestSteadyStateAllocatesNothing'
long="$long|TestSimCrowd|TestSimManyAtOnce|TestSimScale|TestSimShare|TestSimLocalise|TestSimChange|TestEvaluate|TestSimAdversity/(super-packets|BIG_TCP)"
long="$long|TestScripts/(services|completion|completion-bash|help)"

# concurrent lists the packages whose own code starts goroutines, or locks: elsewhere there is
# nothing to race with, whatever the tests.
concurrent() {
  go list -f '{{.ImportPath}}{{range .GoFiles}} {{$.Dir}}/{{.}}{{end}}' ./... | while read -r pkg files; do
    if [ -n "$files" ] && grep -qE '^\s*go (func|[A-Za-z_.]+)\(|\.Go\(|"sync(/atomic)?"' $files; then
      echo "$pkg"
    fi
  done
}

all=$(concurrent)
CGO_ENABLED=1 go test -vet=off -race -skip "$long" $(grep -vE "$labs|$nothing" <<<"$all")
CGO_ENABLED=1 go test -vet=off -race -short -skip "$long" $(grep -E "$labs" <<<"$all")
