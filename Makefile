# The commands of a developer. `make demo` and `make test` install what they need; nothing runs as root but that.
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: build demo lab test bench paths lint soak man packages

build:
	cargo build --release --locked

# A bad link end to end, with one box, and with a pair, in two minutes; PROFILE=satellite shows another one.
demo: packages
	cargo build --release --locked --package tcp-intercept --package tcp-intercept-lab
	@cargo run --release --locked --quiet --package tcp-intercept-lab -- demo PROFILE=$(PROFILE) OUT=$(OUT)

# The same for all profiles, with medians of five: the table of docs/acceleration.md.
lab: packages
	cargo build --release --locked --package tcp-intercept --package tcp-intercept-lab
	@cargo run --release --locked --quiet --package tcp-intercept-lab -- lab PROFILE=$(PROFILE) OUT=$(OUT)

# Two threads at least: a test that has no thread of its own does not know its name, which the lab needs.
test: packages
	RUST_TEST_THREADS=$${RUST_TEST_THREADS:-$$(n=$$(nproc); echo $$((n > 2 ? n : 2)))} \
	cargo test --workspace --locked --no-fail-fast

# Mixed load, resets and churn for MINUTES (60): nothing may leak. Then kills and upgrades under load, TIMES (100) each: nothing may be
# lost.
soak: packages
	cargo build --release --locked --package tcp-intercept --package tcp-intercept-lab
	@cargo run --release --locked --quiet --package tcp-intercept-lab -- soak MINUTES=$(MINUTES)
	@cargo run --release --locked --quiet --package tcp-intercept-lab -- never-drop TIMES=$(TIMES)

# Beside routing and HAProxy, for a quarter of an hour; docs/bench.md explains it. ROUNDS=1 ONLY=bulk1,rtt is quick,
# BASE=REVISION compares with that revision.
bench: packages
	cargo build --release --locked --package tcp-intercept --package tcp-intercept-lab
	@$(if $(BASE),base=$$(scripts/build-revision $(BASE)) &&) \
	cargo run --release --locked --quiet --package tcp-intercept-lab -- bench BASE=$(if $(BASE),"$$base") \
		ROUNDS=$(ROUNDS) SECONDS=$(SECONDS) ONLY=$(ONLY) IDLE=$(IDLE) CONGESTION=$(CONGESTION) OUT=$(OUT)

# What two boxes make of two paths, for nine minutes; docs/pair.md has the figures. WORDS="bonded ipv6" is quicker.
paths: packages
	cargo build --release --locked --package tcp-intercept --package tcp-intercept-lab
	@cargo run --release --locked --quiet --package tcp-intercept-lab -- paths $(WORDS)

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --locked check --hide-inclusion-graph licenses bans sources

# The manual page of the program, from its frame (tcp-intercept.8.in) and the command line. The other one is written by hand.
man:
	UPDATE_MAN=1 cargo test --locked --quiet --test man every_command_and_option

packages:
	@scripts/install-packages
