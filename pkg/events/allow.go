package events

import (
	"fmt"
	"net/netip"
	"strings"
)

// AllowEntry is one entry of the live allowlist: what lies within its prefix must
// not be acted upon. It is the value of the key [AllowKey] in the bucket
// CT_ALLOWLIST, signed by whoever made it.
type AllowEntry struct {
	Head   `msgpack:",inline"`
	Prefix string `msgpack:"prefix" json:"prefix"` // an address or a prefix
	Realm  string `msgpack:"realm" json:"realm"`   // whose addresses are meant; "": every realm's
	// Except: what lies within Prefix is not listed, though a wider entry covers it.
	Except  bool   `msgpack:"except,omitempty" json:"except,omitempty"`
	Comment string `msgpack:"comment,omitempty" json:"comment,omitempty"`
	Until   int64  `msgpack:"until" json:"until"`                         // Unix ms by the server's clock; 0: for ever
	Removed bool   `msgpack:"removed,omitempty" json:"removed,omitempty"` // there is no entry any more
	Time    int64  `msgpack:"time" json:"time"`                           // Unix ms, when it was made; of two the later one holds
}

func (e *AllowEntry) Validate() error {
	if _, err := ParsePrefix(e.Prefix); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	if err := checkRealmOrNone(e.Realm); err != nil {
		return err
	}
	if e.Until < 0 || e.Time <= 0 {
		return fmt.Errorf("until: %d, time: %d, they must not be before 1970", e.Until, e.Time)
	}
	return checkText([2]string{"comment", e.Comment})
}

// anyRealm stands for every realm in a key: no realm has this name.
const anyRealm = "_all"

// AllowKey is the key of an entry in its bucket: one for each realm and prefix.
func AllowKey(realm string, p netip.Prefix) string {
	if realm == "" {
		realm = anyRealm
	}
	return realm + "." + SubjectKey(p)
}

// ParseAllowKey is the inverse of AllowKey.
func ParseAllowKey(key string) (realm string, p netip.Prefix, err error) {
	realm, token, found := strings.Cut(key, ".")
	if !found {
		return "", p, fmt.Errorf("allowlist key %.80q has no realm", key)
	}
	if realm == anyRealm {
		realm = ""
	} else if err := CheckName(realm); err != nil {
		return "", p, fmt.Errorf("allowlist key: realm: %w", err)
	}
	p, err = ParseSubjectKey(token)
	return realm, p, err
}
