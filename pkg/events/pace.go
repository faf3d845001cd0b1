package events

import "fmt"

// Pace is what the aggregator asks of all producers, on ct.v1.pace: to linger
// at least this long before a batch is sent, so that the fleet together stays
// under what one server carries. Producers never linger less than their own
// setting.
type Pace struct {
	Head     `msgpack:",inline"`
	LingerMS uint32 `msgpack:"linger_ms" json:"linger_ms"`
	Fleet    uint32 `msgpack:"fleet" json:"fleet"` // firewalls that it was computed for
	// By names one run of an aggregator. Of several, the one that needs the longest
	// linger speaks, and the others keep quiet.
	By string `msgpack:"by,omitempty" json:"by,omitempty"`
}

// MaxLingerMS is the longest linger a producer accepts from the bus.
const MaxLingerMS = 2000

func (p *Pace) Validate() error {
	if p.LingerMS > MaxLingerMS {
		return fmt.Errorf("linger_ms: %d, at most %d is allowed", p.LingerMS, MaxLingerMS)
	}
	return checkText([2]string{"by", p.By})
}
