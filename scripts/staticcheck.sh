#!/usr/bin/env bash
# Static analysis with the version that tools/go.mod pins.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
go build -C tools -o "$dir/staticcheck" honnef.co/go/tools/cmd/staticcheck
"$dir/staticcheck" ./...
