GO       ?= go
FUZZTIME ?= 10s
# A package may take long on a slow machine.
TEST     := $(GO) test -timeout 40m
# Nothing here speaks HTTP/2: without it the binary is half a megabyte smaller.
TAGS     := nethttpomithttp2
VERSION  ?= $(shell git describe --always --dirty 2>/dev/null || echo dev)

.PHONY: build test race interop e2e lightning bench bench-compare lint fuzz cross deps demo

build:
	CGO_ENABLED=0 $(GO) build -tags $(TAGS) $$(scripts/gcflags.sh) -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/edge ./cmd/edge

# Everything in-process; needs Go alone.
test:
	$(TEST) ./...

race:
	$(TEST) -race ./storage -crashpoints 500
	$(TEST) -race ./feed -crashpoints 500 -kills 5 -skip TestYears
	$(TEST) -race ./protocol/replicate -schedules 150
	$(TEST) -race ./market -short -skip 'Strangers|Memory' -unauthorised 200
	$(TEST) -race ./market/archive ./market/card ./market/proof ./market/device ./market/purse ./market/rows
	$(TEST) -race ./payment/cashier -sequences 1000
	$(TEST) -race $$($(GO) list ./payment/... | grep -v /cashier$$) ./monitor ./protocol/bucket
	$(TEST) -race ./protocol/udx ./protocol/dht/... ./protocol/relay ./protocol/punch ./protocol/simnet ./market/client
	$(TEST) -race ./sensors/... ./configs ./protocol/noise ./protocol/secretstream ./protocol/mux ./protocol/dazaar

# Stock npm peers, pinned, in both directions; make deps installs them.
interop:
	$(GO) test ./protocol/compact ./feed/merkle -run 'Vectors|Random' -count 1
	$(GO) test -tags interop ./test/interop -count 1 -timeout 20m

# The real binary: on the real file system, killed, damaged, moved, repaired; with
# mosquitto; behind real routers; on an emulated ARM board whose power is cut. As root; installs what it needs.
e2e:
	$(TEST) ./cmd/edge -count 1
	$(TEST) ./feed -run 'TestKill' -count 1 -v
	command -v mosquitto >/dev/null || { apt-get -qq update && apt-get -qq install -y --no-install-recommends mosquitto; }
	$(GO) test -tags e2e ./test/broker -count 1 -v
	test/nat/run ci
	test/board/prepare.sh
	$(GO) test -tags e2e ./test/board -count 1 -v -timeout 20m

# Real lnd nodes on a chain of their own; lnd's own codec; Nostr relays and wallets. Builds them once, in four
# minutes or so.
LIGHTNING := test/lightning/bin
lightning:
	test/lightning/build.sh
	test/nostr/build.sh
	ZPAY=$(CURDIR)/$(LIGHTNING)/zpay $(GO) test -tags e2e ./payment/bolt11 -run Zpay -count 1 -v
	NOSTR=$(CURDIR)/$(LIGHTNING)/nostr $(LIGHTNING)/lab -bin $(LIGHTNING) $(GO) test -tags e2e ./test/money -count 1 -v -timeout 30m

bench:
	$(GO) test ./feed -run xxx -bench 'Append|DeviceBytes|Proof|Open|RSS' -benchtime 2s -timeout 60m
	$(GO) test ./test/bench -run xxx -bench Replicate -benchtime 3x

# The same transfer between stock peers, from us to a stock peer, and between two of
# ours, in one run, as ratios.
bench-compare:
	$(GO) test -tags interop ./test/interop -run xxx -bench Compare -benchtime 1x -timeout 30m

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'gofmt: the files above'; exit 1; }
	$(GO) vet ./...
	GOOS=linux GOARCH=arm GOARM=6 $(GO) vet ./...
	$(GO) vet -tags interop ./test/interop
	$(GO) vet -tags e2e ./test/broker ./test/board ./test/nat ./test/money ./payment/bolt11
	cd test/lightning && $(GO) vet ./...
	cd test/nostr && $(GO) vet ./...
	$(GO) test -count 1 ./test/layers

# Before 1.27 the Go tool may fail when the time is up, "context deadline exceeded",
# with nothing found (golang.org/issue/75804): that is no failure of the target.
fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test $$pkg -list '^Fuzz' | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; \
	    out=$$($(GO) test $$pkg -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x 2>&1) || \
	      { echo "$$out" | grep -q 'context deadline exceeded' && ! echo "$$out" | grep -q 'Failing input'; } || { echo "$$out"; exit 1; }; \
	    echo "$$out" | tail -n 1; \
	  done; done

cross:
	scripts/cross-build.sh

# For make interop: Node 20 and the pinned npm peers.
deps:
	$(GO) mod download
	cd test/interop && npm ci --no-audit --no-fund

demo: build
	$(GO) build -o bin/demo ./test/demo
	scripts/demo.sh
