#!/bin/sh
# Samples this very host, sells the readings to a buyer beside it, pulls the plug
# under both, and shows that nothing acknowledged is gone and nothing comes twice.
# Needs bin/edge (make demo builds it).
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
pid=
buyer=
trap 'for p in $pid $buyer; do kill "$p" 2>/dev/null || true; done; rm -rf "$dir"' EXIT
cat >"$dir/edge.yaml" <<YAML
storage: {path: $dir/data, max_size: 64MiB, commit: {every: 0s}}
feeds:
  - name: this-host
    price: free
    tcp: "127.0.0.1:0"
    pack: {every: 500ms}
    sensors:
      - {name: host, driver: host, every: 500ms}
      - {name: wave, driver: sim, every: 250ms}
YAML

# start runs the device; where it sells is another place each time, so that two
# demos do not meet.
start() {
	bin/edge run -c "$dir/edge.yaml" >"$dir/out" 2>"$dir/err" &
	pid=$!
	until grep -q '"ready":true' "$dir/out"; do
		kill -0 "$pid" 2>/dev/null || { cat "$dir/err" >&2; exit 1; }
		sleep 0.05
	done
	key=$(sed 's/.*"sellerKey":"\([0-9a-f]*\)".*/\1/' "$dir/out")
	tcp=$(sed 's/.*"tcp":"\([^"]*\)".*/\1/' "$dir/out")
}

# buy follows the feed into a file and shows what arrives for some seconds.
buy() {
	bin/edge buy "$key" --seller "$tcp" --follow --state "$dir/buyer" --out "$dir/readings.ndjson" 2>>"$dir/buyer.err" &
	buyer=$!
	until [ -s "$dir/readings.ndjson" ] && [ "$(wc -l <"$dir/readings.ndjson")" -gt "$1" ]; do
		kill -0 "$buyer" 2>/dev/null || { cat "$dir/buyer.err" >&2; exit 1; }
		sleep 0.05
	done
	timeout 4 tail -n +"$(($1 + 1))" -f "$dir/readings.ndjson" | cut -c -110 | awk 'NR <= 12' || true
}

echo '== a device that samples this host, and sells the readings'
start
cat "$dir/out"
echo
echo "== a buyer follows them live:  edge buy $(echo "$key" | cut -c -8)… --seller $tcp --follow"
buy 0
echo
echo '== pulling the plug under both (kill -9)'
kill -9 "$pid" "$buyer"
wait "$pid" "$buyer" 2>/dev/null || true
pid=
buyer=
bin/edge verify "$dir/data"
had=$(wc -l <"$dir/readings.ndjson")
echo
echo "== starting both again: the log goes on and says why something is missing;"
echo "   the buyer had $had lines, and goes on behind those that it knows to be on its disk"
start
buy "$had"
kill -INT "$buyer"
wait "$buyer" || true
buyer=
kill -INT "$pid"
wait "$pid"
pid=
echo
bin/edge verify "$dir/data"
echo 'the gap, as the buyer got it:'
grep -o '{"index":[0-9]*,"entry":{"entry":"gap"[^}]*}}' "$dir/readings.ndjson" | tail -n 1
echo 'blocks that the buyer got twice, or out of order:'
sed 's/^{"index":\([0-9]*\),.*/\1/' "$dir/readings.ndjson" | uniq | sort -n -c - && echo none
echo
echo 'For real:  bin/edge run -c configs/edge.example.yaml        (edit it first)'
echo '           bin/edge buy KEY --seller HOST:PORT --follow     (KEY and port as run prints them)'
