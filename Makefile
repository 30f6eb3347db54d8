# Coppice: every target runs as root on a fresh Debian 12 or 13 with Go, make and git present.
# `make help` lists them; CONTRIBUTING.md says when to use which.

GO      ?= go
# Those whose tests take longest come first, so that none of them is the last and alone.
PKGS    ?= ./union ./node ./image ./cmd/coppice ./...
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# How many states the crash simulator looks at in random schedules, at least; workloads gone through completely add some 48,000.
CRASH_STATES      ?= 100000
CRASH_STATES_LONG ?= 1000000

# What the race detector has nothing to find in: one goroutine does it all, it measures, or what runs is another program; or other tests have the same
# goroutines, for BuildOfChanges TestBuildGoesOn. The simulator's threads are made up; TestCrashThreads has real ones.
SEQUENTIAL := ^Test(CrashSimulator|CrashSmallScope|LogWraps|Paging|Tidy|MoveCut|HostileStructures|GoldenStore|DepthCostsNothing|$\
NoAllocations|Figures|HostileImagesAreRefused|RebuiltTreeCostsLittle|ScanLeavesABoot|ClassesGiveWay|FlipsOfStructures|$\
CLIPageHasEveryCommand|BootstrapCoverage|Package.*|FaultSweep|GrowCutAtEachCall|PowerCutWhileLayersChange|ServeAllocatesNothing|BuildOfChanges|$\
AnyFlippedByteIsNoticed|FirstByteIsCheap|Update|TarMakesTheSameAsItsDirectory|DamagedFileSystems|Scan|FlipsOfContent|ReadmeNamesRealCommands|$\
RunbookHasCommandsThatCanBeRun|BlocksLostOrMisplaced|EachByteFlipped|EachByteOfDataFlipped|LogDamagedInBothCopies|EitherLogCopyIsEnough|$\
FullStoreSurvivesPowerCut|QuotaCutAtEachCall|BootsModel|BootBlockFormat|NoAllocationsForRootInMemory|CurvePredictsWhatIsMeasured|$\
CurveIsDeterministic|MiniaturesAreWhatTheyStandFor|CurveModel|EntriesNeverShare|BrokenTable|Idx.*)$$

# What packages are built for.
DEB_ARCHS ?= amd64 arm64

# Benchmark knobs: paired rounds, seconds per job, and patterns that the subjects and jobs to measure match. ROUNDS=1 SECONDS=0.3 is for
# those who work on the benchmark itself. COUNT is how many rounds bench-native has.
ROUNDS   ?= 12
SECONDS  ?= 2
SUBJECTS ?=
JOBS     ?=
COUNT    ?= 10

BUILD     := build
TOOLS     := $(BUILD)/tools
RESULTS   := $(BUILD)/results
LDFLAGS   := -s -w -X main.version=$(VERSION)
GOBUILD    = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'
TESTSUM   := $(TOOLS)/testsum
LINTER    := $(TOOLS)/golangci-lint
VULNCHECK := $(TOOLS)/govulncheck
NFPM      := $(TOOLS)/nfpm

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help deps build deb demo test long unit crash mutants vm race lint fmt generate bench bench-native bench-cache figures \
        vmimages checks fmt-check vet vuln clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | \
	  sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

deps: ## install by apt what the other targets need (only what is missing)
	@tools/deps.sh

build: ## build bin/coppice, static, and prove that arm64 compiles
	$(GOBUILD) -o bin/coppice ./cmd/coppice
	GOARCH=arm64 $(GOBUILD) -o $(BUILD)/arm64/coppice ./cmd/coppice

deb: $(NFPM) ## build the Debian packages, build/deb/coppice_VERSION_{amd64,arm64}.deb
	GO=$(GO) NFPM=$(NFPM) tools/deb.sh $(DEB_ARCHS)

demo: deps build ## show the main job on a real Debian root, in a VM where this kernel has no ublk
	tools/demo.sh

# Unit tests wait for more than half of their time, and so crash and mutants, which compute, go beside them. Race and VM tests leave idle what the checks take then, and
# never more (chrt). What those print comes afterwards.
test: deps $(TESTSUM) ## run everything: unit, crash, mutant, race and VM tests, format, vet, lint
	@rm -rf $(RESULTS)
	@mkdir -p $(RESULTS)
	@$(MAKE) --no-print-directory vmimages >$(RESULTS)/vmimages.log 2>&1 & \
	failed=; stage() { $(MAKE) --no-print-directory $$1 || failed="$$failed $$1"; }; \
	stage build; \
	$(MAKE) --no-print-directory -k crash mutants >$(RESULTS)/beside.log 2>&1 & beside=$$!; \
	stage unit; \
	wait $$beside || failed="$$failed crash/mutants"; cat $(RESULTS)/beside.log; \
	chrt --idle 0 $(MAKE) --no-print-directory checks >$(RESULTS)/checks.log 2>&1 & checks=$$!; \
	stage race; stage vm; \
	wait $$checks || failed="$$failed checks"; cat $(RESULTS)/checks.log; \
	[ -z "$$failed" ] || echo "make test: failed:$$failed"; \
	$(TESTSUM) total $(RESULTS) unit crash mutants race vm && [ -z "$$failed" ]

unit: $(TESTSUM) $(NFPM) ## unit tests, but for those of crash: no VM, and root for network namespaces only
	$(GO) -C tools test ./testsum ./sbom
	$(TESTSUM) run $(RESULTS)/unit.json -- $(GO) test -count=1 -timeout 10m -skip '^TestCrash' $(PKGS)

crash: $(TESTSUM) ## the crash simulator: power cuts and deaths of the process, in memory
	$(TESTSUM) run -v $(RESULTS)/crash.json -- $(GO) test -count=1 -timeout 20m ./union -run '^TestCrash' -crash-states $(CRASH_STATES)

mutants: $(TESTSUM) ## make each of the durability bugs of union/bugs.go, which the crash simulator must notice
	$(TESTSUM) run -v $(RESULTS)/mutants.json -- $(GO) test -tags mutants -count=1 -timeout 20m ./union -run Mutant

race: $(TESTSUM) ## unit tests under the race detector (needs gcc)
	$(TESTSUM) run $(RESULTS)/race.json -- env CGO_ENABLED=1 $(GO) test -race -short -count=1 -timeout 10m -skip '$(SEQUENTIAL)' $(PKGS)

# They wait for the network more than they work, so that make test makes them beside its first stages. What is missing the VM tests make themselves.
vmimages:
	$(GO) run ./vmtests/cmd/vmimage kernel debian userland system-bare

vm: build $(TESTSUM) ## tests in a QEMU VM, against the real ublk driver
	$(TESTSUM) run -v $(RESULTS)/vm.json -- $(GO) test -tags vm -count=1 -timeout 50m ./vmtests

long: deps build $(TESTSUM) ## the runs that are too long for `make test`
	$(TESTSUM) run -v $(RESULTS)/crash-long.json -- $(GO) test -count=1 -timeout 2h ./union -run '^TestCrash' -crash-states $(CRASH_STATES_LONG)
	$(TESTSUM) run -v $(RESULTS)/sweep-long.json -- $(GO) test -count=1 -timeout 1h ./union -run '^TestFaultSweep$$' -args -fault-share 1
	$(TESTSUM) run -v $(RESULTS)/model-long.json -- $(GO) test -count=1 -timeout 2h ./union -run '^TestModel$$' -rapid.checks 10000 -rapid.steps 60
	$(TESTSUM) run -v $(RESULTS)/curves-long.json -- $(GO) test -count=1 -timeout 1h ./cache -run '^TestCurvePredictsWhatIsMeasured$$' -args -curves
	$(TESTSUM) run -v $(RESULTS)/index-long.json -- $(GO) test -count=1 -timeout 2h ./idxshare -run '^TestIdxFigures$$' -args -figures $(abspath $(RESULTS))/figures-index-27m.md -names 27000000
	tools/foreign.sh $(BUILD)/foreign
	$(TESTSUM) run -v $(RESULTS)/foreign-long.json -- $(GO) test -count=1 -timeout 1h ./idxshare -run '^TestIdx(ForeignImages|OfManyFiles)$$' -args -foreign $(abspath $(BUILD))/foreign -files 1000000
	$(TESTSUM) run -v $(RESULTS)/fleet-long.json -- $(GO) test -count=1 -timeout 1h ./node/fleet -run '^TestFleetAsksIndex$$' -args -figures $(abspath $(RESULTS))/figures-fleet-index.md
	$(TESTSUM) run -v $(RESULTS)/faults-long.json -- $(GO) test -count=1 -timeout 1h ./image -run '^TestSingleFaults' -args -faults 100000
	$(TESTSUM) run -v $(RESULTS)/long.json -- $(GO) test -tags vm,long -count=1 -timeout 5h ./vmtests

bench: deps build ## measure against null_blk, loop, dm-snapshot, qemu-nbd and nbdkit in a VM; writes docs/benchmarks/
	$(GO) run ./bench/benchhost -rounds $(ROUNDS) -seconds $(SECONDS) -subjects '$(SUBJECTS)' -jobs '$(JOBS)' -version $(VERSION)

bench-native: ## measure ring, reactor, sector map, log, leaf, cache and chunks on this machine; writes docs/benchmarks/
	$(GO) run ./bench/benchnative -count $(COUNT) -version $(VERSION)

figures: ## measure leaf, images, the index, cache and fleets of nodes natively (write amplification, recovery, builds, …); writes docs/figures*.md
	$(GO) test ./union -run '^TestFigures$$' -count=1 -timeout 2h -v -args -figures $(CURDIR)/docs/figures.md
	$(GO) test ./image -run '^TestFigures$$' -count=1 -timeout 2h -v -args -figures $(CURDIR)/docs/figures-images.md
	$(GO) test ./idxshare -run '^TestIdxFigures$$' -count=1 -timeout 2h -v -args -figures $(CURDIR)/docs/figures-index.md
	$(GO) test ./cache/trace -run '^TestFigures$$' -count=1 -timeout 2h -v -args -figures $(CURDIR)/docs/figures-cache.md
	$(GO) test ./node/fleet -run '^TestFleet' -count=1 -timeout 2h -v -args -figures $(CURDIR)/docs/figures-fleet.md

bench-cache: ## measure a hit of the cache beside golang-lru and otter (a module of its own)
	cd bench/cachepeers && $(GO) test -run '^$$' -bench Hit -cpu 1,2 -count 6

lint: checks vuln ## vet, golangci-lint and govulncheck

checks: fmt-check vet $(LINTER)
	$(LINTER) run $(PKGS)
	cd tools && ../$(LINTER) run ./testsum ./sbom

fmt: ## format every Go file
	gofmt -w $$(git ls-files -co --exclude-standard '*.go')

fmt-check:
	@bad=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
	  if [ -n "$$bad" ]; then echo "not formatted (run make fmt):" $$bad; exit 1; fi

# With the tags of other tests the linter does what vet does.
vet:
	$(GO) vet $(PKGS)
	GOARCH=arm64 $(GO) vet $(PKGS)

vuln: $(VULNCHECK)
	@tools/vuln.sh $(VULNCHECK) $(PKGS)

generate: ## run go generate (clang-19, from Debian 12 or 13); the tree must be clean afterwards
	@tools/deps.sh clang-19 llvm-19
	$(GO) generate $(PKGS)

clean:
	rm -rf bin $(BUILD)

$(TESTSUM): tools/go.mod $(wildcard tools/testsum/*.go)
	$(GO) -C tools build -o ../$@ ./testsum

$(LINTER): tools/go.mod
	$(GO) -C tools build -o ../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(VULNCHECK): tools/go.mod
	$(GO) -C tools build -o ../$@ golang.org/x/vuln/cmd/govulncheck

# A module of its own: what nfpm needs would change what the linter is built with.
$(NFPM): tools/nfpm/go.mod
	$(GO) -C tools/nfpm build -o ../../$@ github.com/goreleaser/nfpm/v2/cmd/nfpm
