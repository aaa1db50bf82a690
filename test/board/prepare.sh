#!/bin/sh
# Brings what test/board needs into .cache/board: the lab of ../shared with the kernel
# that it builds, the agent, and edge for both ends. Everything but the last two is kept.
set -eu
cd "$(dirname "$0")/../.."
lab=../shared/labs/boardlab
cache=$PWD/.cache/board
mkdir -p "$cache"
need() { for p in "$@"; do dpkg -s "$p" >/dev/null 2>&1 || echo "$p"; done; }
missing=$(need gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf make bc libelf1 device-tree-compiler xz-utils qemu-system-arm e2fsprogs)
if [ -n "$missing" ]; then
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
fi
if [ ! -e "$cache/kernel/done" ]; then
	rm -rf "$cache/lab" "$cache/kernel"
	cp -r "$lab" "$cache/lab"
	# i2c-virtio of this kernel waits in a way that a signal ends, frees what the device
	# still writes to, and so spoils the kernel's memory. Go programs send themselves
	# signals.
	patch='  sed -i "s/wait_for_completion_interruptible(\&req->completion)/(wait_for_completion(\\\&req->completion), 0)/" $m/i2c-virtio.c'
	awk -v line="$patch" '/MODULE_DEVICE_TABLE/ { print line } { print }' "$lab/getkernel.sh" >"$cache/lab/getkernel.sh"
	grep -q 'wait_for_completion_interruptible' "$cache/lab/getkernel.sh"
	"$cache/lab/getkernel.sh" "$cache/kernel" >"$cache/kernel.log" 2>&1 || { tail -n 20 "$cache/kernel.log" >&2; exit 1; }
	(cd "$cache/lab" && CGO_ENABLED=0 go build -o "$cache/boardlab" ./cmd/boardlab)
	touch "$cache/kernel/done"
fi
CGO_ENABLED=0 go build -tags nethttpomithttp2 -o "$cache/edge" ./cmd/edge
CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build -tags nethttpomithttp2 -trimpath -ldflags '-s -w' -o "$cache/edge-arm64" ./cmd/edge
CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build -trimpath -ldflags '-s -w' -o "$cache/agent-arm64" ./test/board/agent
