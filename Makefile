# Tidemark. The two commands of the README: make demo, make test.
GO ?= go
# No C: the binary is static, and builds wherever Go does.
export CGO_ENABLED ?= 0

.PHONY: build demo test test-deps demo-deps bench-deps bench fuzz lint clean

build: ## the binary
	$(GO) build -o bin/tidemark ./cmd/tidemark

demo: build demo-deps ## the main job on a real PostgreSQL, start to finish; DEMO=--keep leaves it running
	./bin/tidemark demo $(DEMO)

# CI=1: a tool that is missing fails its tests, where it would skip them on a developer's machine.
test: test-deps lint ## installs what the tests need, and runs all of them
	CI=1 $(GO) test -timeout 60m -p 2 ./...

lint: ## format and vet; the other rules are tests in internal/tidy
	test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./...

fuzz: ## each fuzz test for FUZZTIME, 30s if not given; tests run their seeds only
	GO=$(GO) ./scripts/fuzz

test-deps demo-deps bench-deps: ## what they need of Debian 12
	./scripts/install-$@

bench: bench-deps ## side by side with peers; writes bench/out and docs/benchmarks.md; BENCH=-quick to see that it works
	$(GO) run ./bench $(BENCH)
	$(GO) run ./bench -report docs/benchmarks.md

clean:
	rm -rf bin
