GO       ?= go
FUZZTIME ?= 10s
VERSION  ?= $(shell git describe --always --dirty 2>/dev/null || echo dev)

.PHONY: build test race interop e2e bench lint fuzz cross deps demo

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/edge ./cmd/edge

# Everything in-process; needs Go alone.
test:
	$(GO) test ./...

race:
	$(GO) test -race ./storage -crashpoints 500
	$(GO) test -race ./feed -crashpoints 500 -kills 5 -skip TestYears
	$(GO) test -race ./market/... ./sensors/... ./configs

# Stock npm peers. Proofs of the tree are pinned by vectors that those peers
# made; peers themselves come with the wire.
interop:
	$(GO) test ./protocol/compact ./feed/merkle -run 'Vectors|Random' -count 1

# The real binary on the real file system: killed, damaged, moved, repaired.
e2e:
	$(GO) test ./cmd/edge -count 1
	$(GO) test ./feed -run 'TestKill' -count 1 -v

bench:
	$(GO) test ./feed -run xxx -bench 'Append|DeviceBytes|Proof|Open|RSS' -benchtime 2s -timeout 60m

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'gofmt: the files above'; exit 1; }
	$(GO) vet ./...
	$(GO) test ./test/layers

fuzz:
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test $$pkg -list '^Fuzz' | grep '^Fuzz'); do \
	    echo "$$pkg $$f"; $(GO) test $$pkg -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x | tail -n 1; \
	  done; done

cross:
	scripts/cross-build.sh

# Nothing but Go is needed so far.
deps:
	$(GO) mod download

demo: build
	scripts/demo.sh
