#!/usr/bin/env bash
# Builds the relays and wallets of make lightning into ../lightning/bin.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p ../lightning/bin
CGO_ENABLED=0 go build -trimpath -o ../lightning/bin/nostr .
