#!/bin/sh
# Shows the whole thing in one terminal: a device that samples this very host, a
# weather station (the real BME280 driver on a model of the chip) and a sensor behind
# an MQTT broker, and sells the readings for the money of a test wallet; a buyer pays,
# runs dry, tops up, survives a pulled plug, and follows live until Ctrl-C.
# Needs Go alone; make demo builds bin/edge and bin/demo. DEMO_SECONDS ends it by
# itself.
set -eu
cd "$(dirname "$0")/.."
dir=$(mktemp -d)
pid= buyer= broker=
stopped=
trap 'for p in $pid $buyer $broker; do kill "$p" 2>/dev/null || true; done; wait; rm -rf "$dir"' EXIT
trap 'stopped=1' INT

bin/demo broker 127.0.0.1:0 >"$dir/broker" &
broker=$!
until [ -s "$dir/broker" ]; do sleep 0.05; done
cat >"$dir/edge.yaml" <<YAML
device: {name: demo, clock: system, place: {lat: "60.18", lon: "24.95"}}
storage: {path: $dir/data, max_size: 64MiB, commit: {every: 0s}}
payment: [{gateway: devnet, listen: "127.0.0.1:0"}]
mqtt: {broker: "tcp://$(cat "$dir/broker")"}
feeds:
  - name: street
    description: This host, the weather, and the dust in the street
    price: {amount: 2, currency: sat, per: 5s}
    tcp: "127.0.0.1:0"
    pack: {every: 1s}
    sensors:
      - {name: host, driver: host, every: 1s}
      - {name: roof, driver: exec, every: 1s, command: [$PWD/bin/demo, weather]}
      - {name: dust, driver: mqtt, topic: "zigbee2mqtt/+", fields: {pm25: ug/m3}}
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
	tcp=$(sed 's/.*"tcp":"\([^"]*\)".*/\1/' "$dir/out")
	wallet=$(sed 's/.*"wallet":"\([^"]*\)".*/\1/' "$dir/out")
	bin/edge card -c "$dir/edge.yaml" >"$dir/card.json"
}

# buy spends at most $1 sat, in all. It ends the shell: ( ) or &.
buy() {
	exec bin/edge buy "$dir/card.json" --seller "$tcp" --wallet "$wallet" --max-sats "$1" --follow \
		--state "$dir/buyer" --out "$dir/readings.ndjson" 2>>"$dir/buyer.err"
}
readings() { if [ -e "$dir/readings.ndjson" ]; then grep -c '"value"' "$dir/readings.ndjson" || true; else echo 0; fi; }
show() { sed 's/"index":[0-9]*,//; s/,"boot".*"mono":[0-9.]*//' | cut -c -100; }

echo '== a device that samples this host, a weather station, and a sensor behind a broker'
start
bin/edge card -c "$dir/edge.yaml" --link
sed 's/,"feed".*//' "$dir/card.json"
echo
echo '== a buyer with 4 satoshi:  edge buy card.json --wallet URL --max-sats 4'
(buy 4) && rc=0 || rc=$?
grep '"value"' "$dir/readings.ndjson" | head -n 9 | show
echo "… $(readings) readings, then it ran dry, and says so (exit code $rc):"
tail -n 1 "$dir/buyer.err"
echo
echo '== the same command with --max-sats 1000 goes on where it ended; then the plug is pulled under both'
buy 1000 &
buyer=$!
had=$(readings)
until [ "$(readings)" -gt $((had + 40)) ]; do
	kill -0 "$buyer" 2>/dev/null || { cat "$dir/buyer.err" >&2; exit 1; }
	sleep 0.2
done
kill -9 "$pid" "$buyer"
wait "$pid" "$buyer" 2>/dev/null || true
pid= buyer=
bin/edge verify "$dir/data"
echo
echo '== both again: what was paid is still paid, the gap is explained; live until Ctrl-C'
start
bin/edge buyers -c "$dir/edge.yaml"
had=$(readings)
buy 1000 &
buyer=$!
end=${DEMO_SECONDS:-}
[ -n "$end" ] || [ -t 1 ] || end=10
shown=$(wc -l <"$dir/readings.ndjson")
began=$(date +%s)
while [ -z "$stopped" ]; do
	kill -0 "$buyer" 2>/dev/null || { cat "$dir/buyer.err" >&2; exit 1; }
	now=$(wc -l <"$dir/readings.ndjson")
	tail -n "+$((shown + 1))" "$dir/readings.ndjson" | head -n $((now - shown)) | show
	shown=$now
	[ -z "$end" ] || [ $(($(date +%s) - began)) -lt "$end" ] || break
	sleep 1 || true
done
kill -INT "$buyer" 2>/dev/null || true
wait "$buyer" || true
buyer=
echo
bin/edge ledger -c "$dir/edge.yaml" | tail -n 3
kill -TERM "$pid"
wait "$pid"
pid=
[ "$(readings)" -gt "$had" ] || { echo 'nothing came after the restart' >&2; exit 1; }
echo 'blocks that the buyer got twice, or out of order:'
grep -v unavailable "$dir/readings.ndjson" | sed 's/^{"index":\([0-9]*\),.*/\1/' | uniq | sort -n -c - && echo none
echo
echo 'For real:  edge init && edge check -c edge.yaml && edge run -c edge.yaml'
echo '           edge buy CARD --seller HOST:PORT --wallet URL --max-sats N --follow'
