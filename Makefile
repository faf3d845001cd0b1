GO      ?= go
GOBIN   := $(or $(shell $(GO) env GOBIN),$(shell $(GO) env GOPATH)/bin)
VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),devel)
COMMIT  ?= $(or $(shell git rev-parse HEAD 2>/dev/null),unknown)

# What `make fuzz` spends on each target: so many executions, since before Go 1.27 a run that ends by time fails
# now and then (go.dev/issue/75804). And what `make demo` is told.
FUZZTIME  ?= 60000x
DEMOFLAGS ?=

LINT_VERSION := v2.15.0
LINT         := $(GOBIN)/golangci-lint

# Static: one file per program, for a scratch image or a firewall with another libc.
build_go = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X github.com/ctfleet/ctfleet/internal/daemon.Version=$(VERSION) -X github.com/ctfleet/ctfleet/internal/daemon.Commit=$(COMMIT)'

# Where `make install` puts things: DESTDIR before every path, PREFIX for all but what is configured, PART firewall or centre for
# half of it.
PREFIX  ?= /usr/local
DESTDIR ?=
PART    ?=

.PHONY: help build install uninstall release test race fuzz bench lint demo image smoke ci clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build the static programs into bin/
	$(build_go) -o bin/ ./cmd/...

install: build ## install programs, units and configuration (PREFIX, DESTDIR, PART=firewall|centre)
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' deploy/install.sh install $(PART)

uninstall: ## take them away again, but for configuration that was changed
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' deploy/install.sh uninstall $(PART)

release: ## build the archives for linux/amd64 and arm64, with checksums, into dist/
	GO='$(GO)' deploy/release.sh

test: ## run the tests; those that need the kernel skip where it is not permitted
	$(GO) test ./...

race: ## run the tests under the race detector
	$(GO) test -race ./...

fuzz: ## fuzz each decoder for FUZZTIME (60000x)
	@grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' cmd internal pkg | sort | while IFS=: read -r file func; do \
		$(GO) test -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5x "./$${file%/*}" || exit 1; \
	done

bench: ## take the figures of docs/reference/performance.md and write them there (root, half an hour)
	$(GO) run ./internal/bench -write docs/reference/performance.md

lint: ## check style, errors, the direction of imports, and that it builds on macOS
	@$(LINT) version 2>/dev/null | grep -qw '$(LINT_VERSION:v%=%)' || $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	$(LINT) run ./...
	GOOS=darwin GOARCH=arm64 $(GO) vet ./...

demo: ## watch three virtual firewalls, an attack and its flush (DEMOFLAGS='--duration 20s')
	$(GO) run ./cmd/ctfleet demo $(DEMOFLAGS)

image: ## build the container images ctfleet:latest and ctfleet-producer:latest
	docker build --target ctfleet --build-arg VERSION=$(VERSION) --build-arg COMMIT=$$(git rev-parse HEAD) -t ctfleet:latest .
	docker build --target producer --build-arg VERSION=$(VERSION) --build-arg COMMIT=$$(git rev-parse HEAD) -t ctfleet-producer:latest .

smoke: ## bring the compose files up on a real engine, and do with them what an operator does
	deploy/smoke.sh

ci: ## everything that has to pass, from a fresh machine on
	.ci/run

clean: ## remove what was built
	rm -rf bin dist
