package events

import "fmt"

// Keys of the bucket CT_GUARD.
const (
	KeyLedger = "ledger" // a Ledger
	// KeyUnsigned is the Ledger of responders without a key, which only observe.
	KeyUnsigned = "ledger-unsigned"
	KeyCircuit  = "circuit" // a CircuitOrder: what an operator said last
)

// MaxLedgerActs is how many addresses may have been acted upon lately at all: a
// ledger is one message.
const MaxLedgerActs = 1000

// Ledger is what responders share: what was done lately, and whether anything may
// be done. It is the value of the key ledger in the bucket CT_GUARD, signed by the
// responder that wrote it last. Times are Unix ms by the server's clock.
type Ledger struct {
	Head    `msgpack:",inline"`
	Serial  uint64  `msgpack:"serial" json:"serial"` // one more with each change: an older ledger that is sent again shows
	Acts    []Acted `msgpack:"acts,omitempty" json:"acts,omitempty"`
	Circuit Circuit `msgpack:"circuit" json:"circuit"`
}

// Circuit is what stops everything once a budget is spent. While it is open,
// policies only observe.
type Circuit struct {
	Open  bool   `msgpack:"open" json:"open"`
	Since int64  `msgpack:"since" json:"since"`                 // when that began; 0: it was never open
	Why   string `msgpack:"why,omitempty" json:"why,omitempty"` // what was spent, or what the operator said
	Who   string `msgpack:"who,omitempty" json:"who,omitempty"` // who did it; "" for a responder
}

// Acted is one decision to act upon an address.
type Acted struct {
	Realm   string `msgpack:"realm" json:"realm"`
	Address string `msgpack:"address" json:"address"`
	// Alert and Updated are those of the alert behind it: the same ones again are
	// the same deed.
	Alert     string `msgpack:"alert" json:"alert"`
	Updated   int64  `msgpack:"updated" json:"updated"`
	At        int64  `msgpack:"at" json:"at"`       // 0: every firewall refused it, and it counts no more
	Until     int64  `msgpack:"until" json:"until"` // the address is left alone until then
	Simulated bool   `msgpack:"simulated,omitempty" json:"simulated,omitempty"`
}

func (l *Ledger) Validate() error {
	if len(l.Acts) > MaxLedgerActs {
		return fmt.Errorf("acts: %d, at most %d are allowed", len(l.Acts), MaxLedgerActs)
	}
	texts := [][2]string{{"why", l.Circuit.Why}, {"who", l.Circuit.Who}}
	for _, a := range l.Acts {
		texts = append(texts, [2]string{"realm", a.Realm}, [2]string{"address", a.Address}, [2]string{"alert", a.Alert})
	}
	return checkText(texts...)
}

// CircuitOrder is what an operator says of the circuit: the value of the key
// circuit in the bucket CT_GUARD, signed.
type CircuitOrder struct {
	Head   `msgpack:",inline"`
	Open   bool   `msgpack:"open" json:"open"`
	Reason string `msgpack:"reason,omitempty" json:"reason,omitempty"`
	Time   int64  `msgpack:"time" json:"time"` // Unix ms by the server's clock
}

func (o *CircuitOrder) Validate() error { return checkText([2]string{"reason", o.Reason}) }
