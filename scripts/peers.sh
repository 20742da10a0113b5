#!/usr/bin/env bash
# Tests against programs that others wrote (nginx, curl, dig, other traceroutes, tshark, python3, zsh, fish), installed if missing.
set -euo pipefail
cd "$(dirname "$0")/.."
missing=
while read -r program package; do
  command -v "$program" >/dev/null || missing="$missing $package"
done <<EOF
nginx nginx
curl curl
dig bind9-dnsutils
scamper scamper
sc_warts2json scamper
traceroute traceroute
tcptraceroute tcptraceroute
mtr mtr-tiny
dublin-traceroute dublin-traceroute
tshark tshark
python3 python3
zsh zsh
fish fish
EOF
if [ -n "$missing" ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
fi
mkdir -p /var/empty # scamper makes it where it is missing, and of several that begin at once all but one end by that
SERVICE_TRACEROUTE_NO_SKIP=1 go test -vet=off -tags peers -run '^Test(Peers|FirstHour)' -count=1 -v . ./internal/whole ./cmd/service-traceroute
