package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NoListen is the value of a listen flag that switches the listener off.
const NoListen = "none"

// Listen opens a TCP listener, or returns nil for NoListen.
func Listen(addr string) (net.Listener, error) {
	if addr == NoListen || addr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// Health answers the two questions of an orchestrator, and of a service manager. Ready
// explains what is missing, or returns nil; without it the program is ready when it
// runs. Alive explains what stands still, or returns nil; without it the program is
// alive.
type Health struct{ Ready, Alive func() error }

func (h *Health) ready() error { return ask(h.Ready) }
func (h *Health) alive() error { return ask(h.Alive) }

func ask(question func() error) error {
	if question == nil {
		return nil
	}
	return question()
}

// Mux returns a handler with /metrics, /healthz and /readyz.
func Mux(reg *prometheus.Registry, h Health) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := h.alive(); err != nil {
			http.Error(w, "not alive: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := h.ready(); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

// Serve serves handler on l until ctx ends. A nil listener serves nothing.
func Serve(ctx context.Context, l net.Listener, handler http.Handler, log *slog.Logger) error {
	if l == nil {
		<-ctx.Done()
		return nil
	}
	srv := &http.Server{
		Handler:           secure(checkHost(l.Addr(), handler)),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if srv.Shutdown(drain) != nil {
			srv.Close()
		}
	}()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	<-stopped
	return nil
}

// checkHost refuses requests whose Host header is a foreign name when the
// listener is on loopback: a web page must not read the API of whoever visits
// it by pointing its own name at 127.0.0.1 (DNS rebinding).
func checkHost(addr net.Addr, next http.Handler) http.Handler {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsLoopback() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if !strings.EqualFold(host, "localhost") && (err != nil || !ip.IsLoopback()) {
			Problem(w, http.StatusMisdirectedRequest, "this address answers to localhost only")
			return
		}
		next.ServeHTTP(w, r)
	})
}
