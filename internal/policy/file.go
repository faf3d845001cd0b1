package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Modes.
const (
	Observe = "observe" // decide and record, send nothing
	Approve = "approve" // ask a person about each
	Enforce = "enforce" // send commands
)

// Actions.
const (
	ActionFlush      = "flush"       // delete the address's entries
	ActionBlock      = "block"       // drop its packets, for a while
	ActionFlushBlock = "flush+block" // block it, then delete its entries
	ActionRelieve    = "relieve"     // of a table: delete unanswered entries of its largest sources
)

// What to do about a source none of whose flows was ever answered: it may be
// forged, and its owner would be the one who suffers.
const (
	UnansweredRefuse = "refuse" // the firewall leaves it alone
	UnansweredDelete = "delete" // only entries without an answer are deleted, whoever's they are
)

// Where an action applies: to the firewalls that the alert names, or to all of
// its realm.
const (
	WhereAlert = "alert"
	WhereRealm = "realm"
)

// File is the policy file.
type File struct {
	Mode      string        `yaml:"mode"`
	Policies  []Policy      `yaml:"policies"`
	Allowlist rule.Prefixes `yaml:"allowlist"` // addresses and prefixes
	// CoolDown is how long an address is left alone after an action: a flush
	// makes established flows come back as new ones, which must not trigger
	// the next flush. An address that is still over the threshold then is acted
	// upon again.
	CoolDown time.Duration `yaml:"cool_down"`
	// MaxAge is how old an alert may be to be acted upon.
	MaxAge time.Duration `yaml:"max_age"`
	// ApproveWithin is how long a person has to approve what is proposed.
	ApproveWithin time.Duration `yaml:"approve_within"`
	// Budget bounds what all policies together may do.
	Budget Budget `yaml:"budget"`

	Digest string `yaml:"-"` // of the file, for whoever has read it from one
}

// Budget bounds the damage that a wrong rule, or whoever makes alerts fire, can do.
// 0 is no limit.
type Budget struct {
	// AddressesPerMinute is how many times an address is acted upon within any
	// minute, by all responders together. When it is spent the circuit opens.
	AddressesPerMinute int `yaml:"addresses_per_minute"`
	// TablePercent is how much of one firewall's table one command may delete, and
	// RealmPercent how much of the tables of a realm all the commands about one
	// address may.
	TablePercent float64 `yaml:"table_percent"`
	RealmPercent float64 `yaml:"realm_percent"`
	// Firewalls is on how many firewalls an address is acted upon at a time. Where it
	// would be more, nothing is done.
	Firewalls int `yaml:"firewalls"`
}

// Policy says what to do about the alerts of one rule.
type Policy struct {
	Rule   string `yaml:"rule"`
	Mode   string `yaml:"mode"` // overrides the file's
	Action string `yaml:"action"`
	Where  string `yaml:"where"`
	// Unanswered is UnansweredRefuse unless it says otherwise. About a destination,
	// UnansweredDelete means the entries towards it that had no answer, and
	// UnansweredRefuse the sources that contribute most.
	Unanswered string `yaml:"unanswered"`
	// BlockFor is how long a block lasts.
	BlockFor time.Duration `yaml:"block_for"`
	// UntilPercent is how full a table may stay when it is relieved.
	UntilPercent float64 `yaml:"until_percent"`
}

// Default is a file without policies.
func Default() File {
	return File{Mode: Observe, CoolDown: time.Minute, MaxAge: 30 * time.Second, ApproveWithin: 10 * time.Minute, Budget: Budget{AddressesPerMinute: 10}}
}

// DefaultBlockFor is how long a block lasts where the policy does not say.
const DefaultBlockFor = 10 * time.Minute

// maxApproveWithin bounds how long a proposal may wait.
const maxApproveWithin = 24 * time.Hour

// Validate reports the first thing that is wrong, naming it.
func (f *File) Validate() error {
	if err := oneOf(f.Mode, Observe, Approve, Enforce); err != nil {
		return config.At("$.mode", "mode: %w", err)
	}
	switch {
	case f.CoolDown < 0:
		return config.At("$.cool_down", "cool_down: must not be negative, is %s", f.CoolDown)
	case f.MaxAge <= 0:
		return config.At("$.max_age", "max_age: must be positive, is %s", f.MaxAge)
	case f.ApproveWithin <= 0 || f.ApproveWithin > maxApproveWithin:
		return config.At("$.approve_within", "approve_within: must be positive and at most %s, is %s", maxApproveWithin, f.ApproveWithin)
	}
	if err := f.Budget.validate(); err != nil {
		return err
	}
	for i, p := range f.Allowlist {
		path := fmt.Sprintf("$.allowlist[%d]", i)
		if !p.IsValid() {
			return config.At(path, "allowlist: an entry is empty")
		}
		if p != p.Masked() {
			return config.At(path, "allowlist: %s has bits beyond its length, %s is meant?", p, p.Masked())
		}
	}
	seen := map[string]bool{}
	for i := range f.Policies {
		p := &f.Policies[i]
		path := fmt.Sprintf("$.policies[%d].", i)
		if err := events.CheckName(p.Rule); err != nil {
			return config.At(path+"rule", "policies[%d]: rule: %w", i, err)
		}
		if seen[p.Rule] {
			return config.At(path+"rule", "policies[%d]: rule %s has a policy already", i, p.Rule)
		}
		seen[p.Rule] = true
		key, err := p.validate()
		if err == nil && p.Action == ActionRelieve && p.Mode == "" && f.Mode == Approve {
			key, err = "action", errStepByStep
		}
		if err != nil {
			return config.At(path+key, "policy for %s: %s: %w", p.Rule, key, err)
		}
	}
	return nil
}

func (b *Budget) validate() error {
	const path = "$.budget."
	switch {
	case b.AddressesPerMinute < 0 || b.AddressesPerMinute > maxPerMinute:
		return config.At(path+"addresses_per_minute", "budget: addresses_per_minute: must be 0 to %d, is %d", maxPerMinute, b.AddressesPerMinute)
	// Written such that NaN is refused.
	case !(b.TablePercent >= 0 && b.TablePercent <= 100):
		return config.At(path+"table_percent", "budget: table_percent: must be 0 to 100, is %v", b.TablePercent)
	case !(b.RealmPercent >= 0 && b.RealmPercent <= 100):
		return config.At(path+"realm_percent", "budget: realm_percent: must be 0 to 100, is %v", b.RealmPercent)
	case b.Firewalls < 0:
		return config.At(path+"firewalls", "budget: firewalls: must not be negative, is %d", b.Firewalls)
	}
	return nil
}

// maxPerMinute is the largest budget that the ledger has room for.
const maxPerMinute = events.MaxLedgerActs / 2

var errStepByStep = fmt.Errorf("%q goes step by step, which nobody could approve in time: its mode must be %q or %q", ActionRelieve, Observe, Enforce)

// validate fills in what is left out, and returns the key that is wrong.
func (p *Policy) validate() (key string, err error) {
	fill := func(value *string, usual string) {
		if *value == "" {
			*value = usual
		}
	}
	fill(&p.Action, ActionFlush)
	fill(&p.Where, WhereAlert)
	fill(&p.Unanswered, UnansweredRefuse)
	if p.Mode != "" {
		if err := oneOf(p.Mode, Observe, Approve, Enforce); err != nil {
			return "mode", err
		}
	}
	if err := oneOf(p.Action, ActionFlush, ActionBlock, ActionFlushBlock, ActionRelieve); err != nil {
		return "action", err
	}
	if err := oneOf(p.Where, WhereAlert, WhereRealm); err != nil {
		return "where", err
	}
	if err := oneOf(p.Unanswered, UnansweredRefuse, UnansweredDelete); err != nil {
		return "unanswered", err
	}
	blocks := p.Action == ActionBlock || p.Action == ActionFlushBlock
	if blocks && p.BlockFor == 0 {
		p.BlockFor = DefaultBlockFor
	}
	switch relieves := p.Action == ActionRelieve; {
	case blocks && p.Unanswered == UnansweredDelete:
		return "unanswered", fmt.Errorf("a source without answers may be forged, and a block would be its owner's: %q goes with %q only", UnansweredDelete, ActionFlush)
	case !blocks && p.BlockFor != 0:
		return "block_for", fmt.Errorf("%q blocks nothing", p.Action)
	case blocks && (p.BlockFor < time.Second || p.BlockFor > events.MaxBlockS*time.Second):
		return "block_for", fmt.Errorf("must be 1s to %s, is %s", events.MaxBlockS*time.Second, p.BlockFor)
	case relieves && !(p.UntilPercent > 0 && p.UntilPercent < 100):
		return "until_percent", fmt.Errorf("%q goes on until the table is that full: must be above 0 and below 100, is %v", ActionRelieve, p.UntilPercent)
	case !relieves && p.UntilPercent != 0:
		return "until_percent", fmt.Errorf("goes with %q only", ActionRelieve)
	case relieves && p.Mode == Approve:
		return "mode", errStepByStep
	}
	return "", nil
}

// oneOf returns nil when word is one of the valid ones.
func oneOf(word string, valid ...string) error {
	if slices.Contains(valid, word) {
		return nil
	}
	quoted := make([]string, len(valid))
	for i, v := range valid {
		quoted[i] = fmt.Sprintf("%q", v)
	}
	return fmt.Errorf("%.60q is none of %s", word, strings.Join(quoted, ", "))
}
