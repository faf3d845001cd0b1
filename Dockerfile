# The four static programs and the CA certificates, and nothing else. Needs no BuildKit.
#
#   docker build -t ctfleet .
#
# Both bases can be replaced: BUILD_IMAGE by anything with Go, RUN_IMAGE by a base with a shell, for debugging.
ARG BUILD_IMAGE=golang:1.26.8-bookworm
ARG RUN_IMAGE=scratch

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY cmd cmd
COPY internal internal
COPY pkg pkg
ARG VERSION=devel
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
      -ldflags "-s -w -X github.com/ctfleet/ctfleet/internal/daemon.Version=${VERSION}" \
      -o /out/usr/local/bin/ ./cmd/... \
 && mkdir -p /out/etc/ssl/certs /out/etc/ctfleet \
 && if [ -e /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/; fi

FROM ${RUN_IMAGE}
COPY --from=build /out /
# The aggregator, the responder and the tool need no rights. The producer needs NET_ADMIN, which the kernel grants in a
# container to uid 0 only: deploy/compose.firewall.yml.
USER 65532:65532
CMD ["ctfleet", "--help"]
