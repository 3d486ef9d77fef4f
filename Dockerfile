# aegis-ingest in an image with no shell: docker build -t aegis-ingest .
# Plain layers and no cache mounts, so that it builds with BuildKit and without; dependencies are a layer of their own, which
# lasts until Cargo.lock changes.

ARG RUST_VERSION=1.95.0
FROM rust:${RUST_VERSION}-slim-trixie AS build
WORKDIR /build
# A build that is only to be looked at (tests/deploy/image.sh) may be had sooner: --build-arg CARGO_PROFILE_RELEASE_OPT_LEVEL=0.
ARG CARGO_PROFILE_RELEASE_OPT_LEVEL=3 CARGO_PROFILE_RELEASE_LTO=thin CARGO_PROFILE_RELEASE_DEBUG=line-tables-only
# The list of dependencies goes into the binary itself: scanners (syft, grype, trivy, cargo audit bin) read it from there.
RUN cargo install --locked --version 0.7.7 --root /opt/tools cargo-auditable
ENV PATH=/opt/tools/bin:$PATH CARGO_INCREMENTAL=0

COPY Cargo.toml Cargo.lock ./
# Benches and tests are not here, and cargo wants to see every target that the manifest names.
RUN sed -i '/^\[\[\(bench\|test\)\]\]/,/^$/d' Cargo.toml \
    && mkdir src && echo 'fn main() {}' >src/main.rs && touch src/lib.rs \
    && cargo auditable build --release --locked --bin aegis-ingest \
    && rm -r src

COPY migrations migrations
COPY src src
# Newer than the stand-ins above, whatever time the checkout gave them.
RUN find src -name '*.rs' -exec touch {} + \
    && cargo auditable build --release --locked --bin aegis-ingest \
    && install -D target/release/aegis-ingest /out/usr/local/bin/aegis-ingest

# glibc, libgcc, CA certificates, no shell, no package manager; its user nonroot is 65532.
FROM gcr.io/distroless/cc-debian13:nonroot
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="aegis-ingest" \
      org.opencontainers.image.description="Copies voice-assistant events from Redis Streams into TimescaleDB, Redis session hashes and Chroma" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/ /
COPY LICENSE /usr/share/doc/aegis-ingest/LICENSE
USER 65532:65532
# Inside a container the loopback is nobody else's; everything else keeps the program's own default.
ENV AEGIS_HTTP_ADDR=0.0.0.0:9464
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/aegis-ingest", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/aegis-ingest"]
CMD ["run"]
