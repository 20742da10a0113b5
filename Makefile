# Targets a person would guess. Everything here is also a plain command.
.PHONY: help check test short bench fuzz lab race cross staticcheck test-peers mutate eval check-full clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

check: ## what CI runs
	.ci/run

test: ## all tests; labs need root or user namespaces
	go test ./...

short: ## tests without labs
	go test -short ./...

bench: ## benchmarks
	go test -run '^$$' -bench . -benchmem ./...

fuzz: ## every fuzz target, FUZZTIME each (default 10m)
	scripts/fuzz.sh $${FUZZTIME:-10m}

lab: ## the namespace labs alone, skips are failures
	SERVICE_TRACEROUTE_NO_SKIP=1 go test -count=1 . ./internal/lab/...

race: ## the race detector, without the labs
	scripts/race.sh

cross: ## build for every promised system
	scripts/cross.sh

staticcheck: ## static analysis
	scripts/staticcheck.sh

test-peers: ## against nginx, curl, dig, scamper and others, which it installs
	scripts/peers.sh

mutate: ## each probe and matching rule broken on purpose: a named test must notice
	scripts/mutate.sh

eval: ## the evaluation, about 15 minutes: writes docs/evaluation.md and its plots, SEED=1
	SERVICE_TRACEROUTE_NO_SKIP=1 SERVICE_TRACEROUTE_EVALUATE=$${SEED:-1} go test -count=1 -timeout 40m -run '^TestEvaluate' -v .

check-full: ## the big runs, up to 90 minutes; their summaries go into docs
	SERVICE_TRACEROUTE_NO_SKIP=1 SERVICE_TRACEROUTE_FULL=1 go test -count=1 -timeout 85m -v .
	SERVICE_TRACEROUTE_NO_SKIP=1 SERVICE_TRACEROUTE_BACKEND=afpacket go test -count=1 -timeout 20m .
	SERVICE_TRACEROUTE_NO_SKIP=1 SERVICE_TRACEROUTE_FULL=1 go test -tags peers -count=1 -run 'TestPeersServices|TestPeersRun|TestPeersSpeed|TestPeersCompare' -timeout 30m -v .
	SERVICE_TRACEROUTE_NO_SKIP=1 SERVICE_TRACEROUTE_FULL=1 go test -tags peers -count=1 -timeout 15m -run 'TestFirstHour|TestInterrupted|TestDemoInterrupted' -v ./internal/whole
	SERVICE_TRACEROUTE_NO_SKIP=1 SERVICE_TRACEROUTE_FULL=1 go test -count=1 -timeout 15m -run 'TestScale|TestFlood' -v ./internal/whole
	scripts/mutate.sh

clean: ## what was built
	go clean ./...
	rm -f service-traceroute
