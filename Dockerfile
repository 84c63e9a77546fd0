# syntax=docker/dockerfile:1

# Two images out of one build, for both architectures:
#
#   docker buildx build --platform linux/amd64,linux/arm64 --target controller --tag .../switchyard-controller:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 --target agent      --tag .../switchyard-agent:0.1.0 .
#
# The controller holds rights on the API server and the key of its CA, so its image is its binary and a C library: no shell, and
# nobody's root. The agent needs nft and ip, and people who look into it on its node need a shell; it is root with one capability.
#
# The same sources make the same binaries: the compiler and Debian's release are named here, Cargo.lock names the rest, and paths are always
# these. For images that are the same byte for byte, give the base images by digest (the ARGs take `image@sha256:...`) and
# `--build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) --output type=registry,rewrite-timestamp=true`.

# The compiler that rust-toolchain.toml names; that file itself stays out, or rustup would fetch rustfmt and clippy for it.
# One release of Debian for all, so that what is linked against is what is there; and the one that the tests' nft is from.
ARG BUILD_IMAGE=rust:1.95.0-slim-bookworm
ARG CONTROLLER_IMAGE=gcr.io/distroless/cc-debian12:nonroot
ARG AGENT_IMAGE=debian:bookworm-slim

# On the builder's own architecture, compiling for the target: an emulated compiler would take an hour.
FROM --platform=$BUILDPLATFORM ${BUILD_IMAGE} AS build
WORKDIR /src

ARG TARGETARCH
# Each RUN asks for `set -eu` and is plain sh: SHELL is not heeded where images are built in the OCI format (Podman, Buildah).
RUN set -eu; \
    case "$TARGETARCH" in \
        amd64) triple=x86_64-unknown-linux-gnu; tools=x86_64-linux-gnu; package=gcc-x86-64-linux-gnu ;; \
        arm64) triple=aarch64-unknown-linux-gnu; tools=aarch64-linux-gnu; package=gcc-aarch64-linux-gnu ;; \
        *) echo "no build for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    echo "$triple" > /triple; \
    # mimalloc and ring are compiled from C; cargo finds the cross compiler by its usual name, but has to be told of the linker.
    if [ "$TARGETARCH" != "$(dpkg --print-architecture)" ]; then \
        apt-get update; \
        apt-get install --yes --no-install-recommends "$package" "libc6-dev-$TARGETARCH-cross"; \
        rm -rf /var/lib/apt/lists/*; \
        printf '[target.%s]\nlinker = "%s-gcc"\n' "$triple" "$tools" > /usr/local/cargo/config.toml; \
        rustup target add "$triple"; \
    fi

COPY . .
# The caches are not part of the image, so the binaries are copied out of them.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,target=/src/target,sharing=locked \
    set -eu; \
    triple=$(cat /triple); \
    cargo build --release --locked --target "$triple" \
        --package switchyard --package switchyard-controller --package switchyard-agent; \
    mkdir /out; \
    cd "target/$triple/release"; \
    cp switchyard switchyard-controller switchyard-agent /out/

FROM ${CONTROLLER_IMAGE} AS controller
LABEL org.opencontainers.image.title="switchyard-controller" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY LICENSE /usr/share/doc/switchyard/LICENSE
COPY --from=build /out/switchyard-controller /out/switchyard /usr/local/bin/
# By number: Kubernetes checks runAsNonRoot against nothing else.
USER 65532:65532
ENTRYPOINT ["switchyard-controller"]

FROM ${AGENT_IMAGE} AS agent
LABEL org.opencontainers.image.title="switchyard-agent" \
      org.opencontainers.image.licenses="Apache-2.0"
# curl: for the admin address, which is on loopback, and for `helm test`. No versions: Debian's release is the pin, and takes fixes.
# What is removed differs from build to build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends curl iproute2 nftables \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY LICENSE /usr/share/doc/switchyard/LICENSE
COPY --from=build /out/switchyard-agent /out/switchyard /usr/local/bin/
# Root, which nft asks for; the chart leaves it NET_ADMIN and nothing else.
ENTRYPOINT ["switchyard-agent"]
