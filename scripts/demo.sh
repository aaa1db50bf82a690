#!/bin/sh
# Samples this very host, pulls the plug, and shows that nothing acknowledged is
# gone. Needs bin/edge (make demo builds it).
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
pid=
trap 'if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; fi; rm -rf "$dir"' EXIT
cat >"$dir/edge.yaml" <<YAML
storage: {path: $dir/data, max_size: 64MiB, commit: {every: 0s}}
feeds:
  - name: this-host
    pack: {every: 200ms}
    sensors:
      - {name: host, driver: host, every: 100ms}
      - {name: wave, driver: sim, every: 100ms}
YAML

start() {
	bin/edge run -c "$dir/edge.yaml" >"$dir/out" 2>"$dir/err" &
	pid=$!
	until grep -q '"ready":true' "$dir/out"; do
		kill -0 "$pid" 2>/dev/null || { cat "$dir/err" >&2; exit 1; }
		sleep 0.05
	done
}

echo '== sampling this host for three seconds'
start
cat "$dir/out"
sleep 3
echo
echo '== pulling the plug (kill -9)'
kill -9 "$pid"
wait "$pid" 2>/dev/null || true
pid=
bin/edge verify "$dir/data"
echo
echo '== starting again: the log goes on, and says why something is missing'
start
sleep 2
kill -INT "$pid"
wait "$pid"
pid=
bin/edge verify "$dir/data"
echo
echo 'the gap, as it stands in the signed log:'
cat "$dir"/data/logs/this-host/*.seg | tr '\000' '\n' | grep -a -o '{"entry":"gap"[^}]*}' | sort -u | head -3
echo
echo 'For real:  bin/edge run -c configs/edge.example.yaml     (edit it first)'
echo '           bin/edge verify /var/lib/edge'
