#!/usr/bin/env bash
# Tests against programs that others wrote (nginx, curl, tshark, zsh, fish), installed if missing.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=
for program in nginx curl tshark zsh fish; do
  command -v "$program" >/dev/null || missing="$missing $program"
done
if [ -n "$missing" ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
fi
SERVICE_TRACEROUTE_NO_SKIP=1 go test -tags peers -run '^TestPeers' -count=1 -v . ./internal/whole ./cmd/service-traceroute
