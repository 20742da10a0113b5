#!/usr/bin/env bash
# The race detector over everything that does not open a lab. It needs cgo and a
# C compiler; where there is none and apt-get can, it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v gcc >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq gcc libc6-dev >/dev/null
fi
pkgs=$(go list ./... | grep -vE '^servicetraceroute$|/internal/lab(/|$)|/internal/(demo|whole)$')
CGO_ENABLED=1 go test -race -short $pkgs
