# What people working on Switchyard run. `just` lists it.

default:
    @just --list

# What CI runs.
ci:
    .ci/run

# The tests.
test:
    cargo test --workspace

# The tests on the built binaries, as in `just e2e --test canary`.
e2e *args:
    cargo test -p switchyard-tests {{args}}

# The cost of a request beside a plain hyper proxy; `just bench counts` adds instructions, allocations and system calls.
bench *args:
    cargo bench -p switchyard-agent --bench cost -- {{args}}

# Finding a rule among 1 to 100,000, beside a walk over all; `just bench-match check` fails where it takes too long.
bench-match *args:
    cargo bench -p switchyard-agent --bench match -- {{args}}

# What the conflict analysis of one Service costs, by the number and shape of its rules.
bench-conflicts:
    cargo bench -p switchyard-controller --bench conflicts

# Load and change of everything for ten minutes, or so many, and whether anything grows.
soak minutes="10":
    cargo bench -p switchyard-tests --bench soak -- {{minutes}}

# Looks for input that breaks a promise, as in `just fuzz expressions`; needs cargo-fuzz and a nightly toolchain.
fuzz target *args:
    cargo +nightly fuzz run {{target}} {{args}}

# A canary, a circuit and retries at work.
demo:
    cargo run --release -- demo

# Writes the generated YAML again, after a change of the types: the schemas, and the chart's copy of them.
generate:
    UPDATE=1 cargo test -p switchyard-crds schema

# Has helm read the chart with all defaults and with everything on.
chart:
    helm lint --strict charts/switchyard
    helm lint --strict charts/switchyard --values charts/switchyard/ci/all-on.yaml

fmt:
    cargo fmt

lint:
    cargo clippy --workspace --all-targets -- -D warnings
