package events

import (
	"fmt"
	"time"
)

// Keys of the bucket CT_GUARD that are about a firewall.
const (
	keyMute    = "mute."
	keyDismiss = "forget."
)

// MuteKey is where the [Mute] of a firewall is kept in the bucket CT_GUARD.
func MuteKey(firewall string) string { return keyMute + firewall }

// DismissKey is where the [Dismissal] of a firewall is kept in the bucket CT_GUARD.
func DismissKey(firewall string) string { return keyDismiss + firewall }

// MaxMute is for how long a firewall may be muted.
const MaxMute = 30 * 24 * time.Hour

// Mute says that nobody shall be told of the alerts whose scope is a firewall: it is
// the value of [MuteKey], signed by an operator. They fire all the same, and are acted
// upon. Times are Unix ms by the server's clock; of two the later one holds.
type Mute struct {
	Head     `msgpack:",inline"`
	Firewall string `msgpack:"firewall" json:"firewall"`
	Until    int64  `msgpack:"until" json:"until"` // 0: it is muted no more
	Reason   string `msgpack:"reason,omitempty" json:"reason,omitempty"`
	Time     int64  `msgpack:"time" json:"time"`
}

func (m *Mute) Validate() error {
	if err := CheckFirewall(m.Firewall); err != nil {
		return err
	}
	if m.Time < 1 || m.Time > maxAt {
		return fmt.Errorf("time: %d is no time in Unix ms", m.Time)
	}
	if m.Until < 0 || m.Until > m.Time+MaxMute.Milliseconds() {
		return fmt.Errorf("until: %d is more than %s after %d", m.Until, MaxMute, m.Time)
	}
	return checkText([2]string{"reason", m.Reason})
}

// Dismissal says that a firewall is no part of the fleet any more: it is the value of
// [DismissKey], signed by an operator. It names the last report that was heard of the
// firewall; one that sends again is there again.
type Dismissal struct {
	Head     `msgpack:",inline"`
	Firewall string `msgpack:"firewall" json:"firewall"`
	Boot     string `msgpack:"boot" json:"boot"` // of the last report, as is Sent
	Sent     int64  `msgpack:"sent" json:"sent"` // ns, its monotonic clock
	Reason   string `msgpack:"reason,omitempty" json:"reason,omitempty"`
	Time     int64  `msgpack:"time" json:"time"` // Unix ms by the server's clock
}

// Covers reports whether a report is the one that the dismissal names: when a firewall
// will have sent its last cannot be known before.
func (d *Dismissal) Covers(h *Health) bool {
	return d.Firewall == h.Firewall && d.Boot == h.Boot && h.Sent == d.Sent
}

func (d *Dismissal) Validate() error {
	if err := CheckFirewall(d.Firewall); err != nil {
		return err
	}
	if d.Time < 1 || d.Time > maxAt {
		return fmt.Errorf("time: %d is no time in Unix ms", d.Time)
	}
	return checkText([2]string{"boot", d.Boot}, [2]string{"reason", d.Reason})
}
