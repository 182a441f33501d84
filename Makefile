# Tidemark. The two commands of the README: make demo, make test.
GO ?= go
export CGO_ENABLED ?= 0

.PHONY: build demo test test-deps bench lint clean

build: ## the binary
	$(GO) build -o bin/tidemark ./cmd/tidemark

demo: build demo-deps ## the main job on a real PostgreSQL, start to finish
	./bin/tidemark demo $(DEMO)

test: test-deps lint ## installs what the tests need, and runs all of them
	CI=1 $(GO) test -timeout 30m -p 2 ./...

lint:
	test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./...

test-deps demo-deps:
	./scripts/install-$@

bench: build test-deps ## side by side with peers; writes bench/out
	$(GO) run ./bench

clean:
	rm -rf bin
