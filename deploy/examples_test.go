// Package deploy holds what is deployed. Its tests read the examples with the code that will read them.
package deploy

import (
	"testing"

	"github.com/nats-io/nats-server/v2/server"

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

// TestServerConfig reads nats.conf as the server does.
func TestServerConfig(t *testing.T) {
	opts, err := server.ProcessConfigFile("nats/nats.conf")
	if err != nil {
		t.Fatal(err)
	}
	if !opts.JetStream || opts.StoreDir != "/data" {
		t.Errorf("JetStream %t, store %q: want it on, in the volume", opts.JetStream, opts.StoreDir)
	}
	if !opts.SyncAlways {
		t.Error("sync_interval is not always: a power cut would take acknowledged alerts and audit entries")
	}
	if opts.MaxPayload < events.MaxBatchBytes {
		t.Errorf("max_payload %d does not hold a batch of %d bytes", opts.MaxPayload, events.MaxBatchBytes)
	}
}
