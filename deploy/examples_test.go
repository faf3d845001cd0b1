// Package deploy holds what is deployed. Its tests read the examples with the code that will read them.
package deploy

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/ctfleet/ctfleet/internal/auth"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestRulesAndPolicy(t *testing.T) {
	rules := rule.NewFile()
	if err := config.ReadFile("rules.yaml", &rules); err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for i := range rules.Rules {
		named[rules.Rules[i].Name] = true
	}
	p := policy.Default()
	if err := config.ReadFile("policy.yaml", &p); err != nil {
		t.Fatal(err)
	}
	if err := p.Validate(); err != nil {
		t.Fatal(err)
	}
	if p.Mode != policy.Observe {
		t.Errorf("the example policy has mode %s: whoever copies it must not delete anything by that", p.Mode)
	}
	if len(p.Policies) == 0 {
		t.Error("the example policy says nothing about any rule")
	}
	for _, r := range p.Policies {
		if !named[r.Rule] {
			t.Errorf("the example policy is about rule %s, which rules.yaml does not have", r.Rule)
		}
	}
}

// TestServerConfig reads the configuration of three servers as a server does, beside what `ctfleet
// auth init` makes. cmd/ctfleet runs three by it, and kills one.
func TestServerConfig(t *testing.T) {
	dir := t.TempDir()
	if err := auth.Init(dir, auth.Options{Listen: "127.0.0.1:4222"}); err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile("nats/cluster.conf")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "cluster.conf")
	if err := os.WriteFile(path, conf, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for name, value := range map[string]string{
		"NATS_SERVER_NAME": "nats-2", "NATS_LISTEN": "0.0.0.0:4222", "NATS_CLUSTER_LISTEN": "0.0.0.0:6222", "NATS_HTTP": "127.0.0.1:8222", "NATS_STORE": "/data",
		"NATS_ROUTES": "[tls://nats-1:6222, tls://nats-2:6222, tls://nats-3:6222]",
	} {
		t.Setenv(name, value)
	}
	opts, err := server.ProcessConfigFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !opts.JetStream || opts.StoreDir != "/data" || opts.ServerName != "nats-2" {
		t.Errorf("JetStream %t, store %q, name %q: want it on, in the volume, by its name", opts.JetStream, opts.StoreDir, opts.ServerName)
	}
	if !opts.SyncAlways {
		t.Error("sync_interval is not always: a power cut would take acknowledged alerts and audit entries")
	}
	if opts.MaxPayload < events.MaxBatchBytes {
		t.Errorf("max_payload %d does not hold a batch of %d bytes", opts.MaxPayload, events.MaxBatchBytes)
	}
	if opts.HTTPHost != "127.0.0.1" {
		t.Errorf("monitoring listens on %s, and asks nobody who he is", opts.HTTPHost)
	}
	if len(opts.Routes) != 3 || len(opts.Nkeys) == 0 {
		t.Errorf("%d routes, %d users", len(opts.Routes), len(opts.Nkeys))
	}
	for what, c := range map[string]*tls.Config{"clients": opts.TLSConfig, "servers": opts.Cluster.TLSConfig} {
		if c == nil || c.ClientAuth != tls.RequireAndVerifyClientCert || c.MinVersion < tls.VersionTLS12 {
			t.Errorf("%s need no certificate: %+v", what, c)
		}
	}
}
