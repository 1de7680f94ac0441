# husk: see README.md. `make demo` and `make test` are the two commands to begin with.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# How the programs are built: release is what is installed; bed is the same without the minutes of link-time optimisation.
HUSK_PROFILE ?= bed
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
TARGET := $(or $(CARGO_TARGET_DIR),target)
BIN = $(TARGET)/x86_64-unknown-linux-gnu/$(HUSK_PROFILE)
ROOT := target/testbed-root
DESTDIR ?=
PROGRAMS := -p husk-vmm -p husk-agent -p containerd-shim-husk-v2 -p husk

# One after the other, also with -j: the test bed takes what is built.
.NOTPARALLEL:
.PHONY: help setup build programs demo test bench suites install install-files check unit e2e clean

help:
	@sed -n 's/^## //p' Makefile

## make demo      sets up, then runs a container in a microVM and shows it
demo: setup
	@tests/testbed/run --put tests/testbed/demo:/husk-testbed/demo -- /husk-testbed/demo

## make test      sets up, then format, lints, unit tests and the end-to-end tests in the test bed
test: setup check unit e2e

## make bench     measures in the counting test bed; results in target/bench/, of a commit as it is in docs/results/
bench: setup
	@tests/bench/run

## make suites    what is too long for every change; rewrites docs/results/
suites: setup
	@tests/suites/run

## make setup     installs and builds everything it takes; a second run takes seconds
setup:
	@tests/setup.sh
	@$(MAKE) --no-print-directory build

## make install   installs the release build below DESTDIR=
install:
	@$(MAKE) --no-print-directory install-files HUSK_PROFILE=release DESTDIR="$(DESTDIR)"

# The programs as they are installed, below target/testbed-root: what the test bed puts in.
build:
	@rm -rf $(ROOT)
	@$(MAKE) --no-print-directory install-files DESTDIR="$(CURDIR)/$(ROOT)"

programs:
	@cargo build --quiet --locked --profile $(HUSK_PROFILE) $(PROGRAMS)
	@rootfs/build.sh $(BIN)/husk-agent $(BIN)/initrd

install-files: programs
	@test -e target/vmlinux || { echo "husk: no guest kernel: run make setup" >&2; exit 1; }
	@install -D -m 755 -t "$(DESTDIR)/usr/bin" $(BIN)/containerd-shim-husk-v2 $(BIN)/husk
	@install -D -m 755 -t "$(DESTDIR)/usr/lib/husk/$(VERSION)" $(BIN)/husk-vmm $(BIN)/husk-stub
	@install -D -m 644 target/vmlinux "$(DESTDIR)/usr/lib/husk/$(VERSION)/vmlinux"
	@install -D -m 644 $(BIN)/initrd "$(DESTDIR)/usr/lib/husk/$(VERSION)/initrd"
	@test -e "$(DESTDIR)/etc/husk/config.toml" || install -D -m 644 deploy/config.toml "$(DESTDIR)/etc/husk/config.toml"
	@test -e "$(DESTDIR)/usr/bin/containerd-shim-kata-v2" || ln -s containerd-shim-husk-v2 "$(DESTDIR)/usr/bin/containerd-shim-kata-v2"

check:
	@cargo fmt --check
	@cargo clippy --quiet --locked --all-targets -- -D warnings
	@# Not among all targets: the cases, which `cargo test` leaves out (tests/Cargo.toml), and the fuzzer's, which `make suites` runs.
	@cargo clippy --quiet --locked -p husk-tests -p husk-fuzz --features husk-fuzz/targets --test cases --bins -- -D warnings

unit:
	@cargo test --quiet --locked --workspace

e2e: build
	@tests/e2e/run

clean:
	@cargo clean
