# Two images, static and from scratch, each a target. Needs no BuildKit.
#
#   producer   the producer and nothing else: what runs on a firewall
#   ctfleet    the centre: aggregator, responder and the operator's tool
#
#   docker build --target producer -t ctfleet-producer .
#   docker build --target ctfleet -t ctfleet .
#
# The centre's programs share an image, since from scratch nothing else could ask them whether they are ready (`ctfleet ready`),
# and since what a container may do follows from its key and its user, not from the files beside its program.
#
# VERSION and COMMIT are what --version and the labels say: `make image` takes them from git. The same source with the same
# two makes the same layers: no path, no time and no name of a host is in them.
#
# BUILD_IMAGE may be anything with Go, a shell, find and touch.
ARG BUILD_IMAGE=golang:1.26.8-bookworm

FROM ${BUILD_IMAGE} AS source
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY pkg pkg

FROM source AS build-producer
ARG VERSION=devel
ARG COMMIT=unknown
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
      -ldflags "-s -w -X github.com/ctfleet/ctfleet/internal/daemon.Version=${VERSION} -X github.com/ctfleet/ctfleet/internal/daemon.Commit=${COMMIT}" \
      -o /producer/usr/local/bin/ ./cmd/producer \
 && find /producer -exec touch -h -d @0 {} +

FROM scratch AS producer
ARG VERSION=devel
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="ctfleet producer" \
      org.opencontainers.image.description="Streams a firewall's connection-tracking events to NATS" \
      org.opencontainers.image.source="https://github.com/ctfleet/ctfleet" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
COPY --from=build-producer /producer /
# The kernel makes NET_ADMIN effective in a container for uid 0 only. deploy/agent/compose.yml drops all other capabilities.
USER 0:0
ENTRYPOINT ["/usr/local/bin/producer"]

# After the producer's, so that the packages that both need are compiled once.
FROM build-producer AS build-centre
ARG VERSION=devel
ARG COMMIT=unknown
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
      -ldflags "-s -w -X github.com/ctfleet/ctfleet/internal/daemon.Version=${VERSION} -X github.com/ctfleet/ctfleet/internal/daemon.Commit=${COMMIT}" \
      -o /centre/usr/local/bin/ ./cmd/aggregator ./cmd/responder ./cmd/ctfleet \
 && mkdir -p /centre/etc/ssl/certs /volumes/data /volumes/history \
 && if [ -e /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt /centre/etc/ssl/certs/; fi \
 && chmod 0700 /volumes/data /volumes/history \
 && find /centre /volumes -exec touch -h -d @0 {} +

FROM scratch AS ctfleet
ARG VERSION=devel
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="ctfleet" \
      org.opencontainers.image.description="The centre of a fleet: aggregator, responder and the operator's tool" \
      org.opencontainers.image.source="https://github.com/ctfleet/ctfleet" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}"
COPY --from=build-centre /centre /
# A new volume that is mounted here gets the owner of the directory: NATS's, and the aggregator's.
COPY --from=build-centre --chown=65510:65510 /volumes/data /data
COPY --from=build-centre --chown=65511:65511 /volumes/history /history
USER 65513:65513
CMD ["ctfleet", "--help"]
