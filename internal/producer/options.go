package producer

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/block"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Options are what an operator sets; the flags of cmd/producer.
type Options struct {
	Name          string            `placeholder:"NAME" help:"This firewall's name, unique in the fleet: a-z 0-9 - _ (default: the host name, dots to dashes)."`
	Realm         string            `default:"default" help:"Where an address names one host. Sixty branches that all use 192.168.1.0/24 are sixty realms (${default})."`
	Label         map[string]string `placeholder:"K=V" help:"Metadata shown with this firewall, such as site=lis1; may be repeated."`
	Source        string            `enum:"kernel,xml,replay" default:"kernel" help:"Where the events come from: kernel, this host's table; xml, what conntrack -o xml printed, in --input; replay, a recording that ctfleet observe -o raw made, at the pace at which it happened (${default})."`
	Input         string            `placeholder:"FILE|-" help:"With --source xml or replay: the file to read, - for standard input. The producer ends when it does."`
	InputFirewall string            `placeholder:"NAME" help:"With --source replay: whose batches to feed, under --name (default: the recording's only firewall)."`
	NetNS         string            `name:"netns" placeholder:"NAME|PATH" help:"Watch this network namespace instead of the process's own (needs CAP_SYS_ADMIN)."`
	BufferBytes   int               `default:"67108864" help:"Socket buffer to ask for; an event takes 1280 bytes of it (${default})."`
	TableLimit    uint64            `placeholder:"N" help:"The table's limit, where it is not the kernel's nf_conntrack_max."`
	Linger        time.Duration     `default:"10ms" help:"How long an event may wait for others before its batch is sent; at least 25ms while events keep coming, and the aggregator may ask for more (${default})."`
	RingBytes     int               `default:"67108864" help:"How much to keep while NATS is away: about 26 bytes per event in full batches, 36 in batches of 20 (${default})."`
	AllowFlush    bool              `help:"Carry out flush commands. Without it every delete is refused."`
	AllowBlock    bool              `help:"Carry out block commands: keep addresses in sets of nftables whose packets are dropped, each for a time. Without it every block is refused, and nftables is not touched."`
	BlockSet      []string          `placeholder:"FAMILY/TABLE/SET" help:"Block by way of this set, such as inet/filter/blocked4, which your own rules look at; one for each address family. It needs flags timeout (default: a table of our own, inet ctfleet, with its rules)."`
	ClearBlocks   bool              `help:"End all blocks when the producer stops (default: they go on until they end)."`
	Protect       []netip.Prefix    `placeholder:"CIDR" help:"Never flush or block these addresses or prefixes; may be repeated; in a file (--config) read again on SIGHUP, as are --min-local and --flushes-per-minute. Own addresses, gateways, resolvers and the NATS server are always protected."`
	SSHPort       []uint16          `name:"ssh-port" default:"22" placeholder:"PORT" help:"Never flush or block who has a TCP connection to this port of the firewall itself, an operator's SSH session; may be repeated, 0 for nobody (${default})."`
	MinLocal      uint64            `default:"50" placeholder:"N" help:"How many entries what an alert names must have here before it is flushed or blocked, answered ones if the source may be forged: a stolen key of another firewall must not be enough (${default})."`
	PerMinute     int               `name:"flushes-per-minute" default:"60" placeholder:"N" help:"How many addresses and prefixes are flushed or blocked within any minute, whoever asks; 0 for no limit (${default})."`
	Trust         string            `placeholder:"FILE|none" help:"Whose signed commands to carry out: a file of public keys and what each may ask for, read again on SIGHUP; none: everybody's, unsigned. Without it every command that deletes or blocks is refused."`
}

// Validate reports the first option that is wrong and fills in the name.
func (o *Options) Validate() error {
	if o.Name == "" {
		o.Name = host.Name()
	}
	if err := events.CheckFirewall(o.Name); err != nil {
		return fmt.Errorf("--name: %w", err)
	}
	if err := events.CheckRealm(o.Realm); err != nil {
		return fmt.Errorf("--realm: %w", err)
	}
	if o.Linger < time.Millisecond || o.Linger > events.MaxLingerMS*time.Millisecond {
		return fmt.Errorf("--linger: %s is not within 1ms to %dms", o.Linger, events.MaxLingerMS)
	}
	if o.RingBytes < 1<<20 {
		return fmt.Errorf("--ring-bytes: %d is less than 1 MiB", o.RingBytes)
	}
	if o.BufferBytes < 64<<10 {
		return fmt.Errorf("--buffer-bytes: %d is less than 64 KiB", o.BufferBytes)
	}
	if o.PerMinute < 0 {
		return fmt.Errorf("--flushes-per-minute: must not be negative, is %d", o.PerMinute)
	}
	if o.MinLocal > conntrack.MaxHeld {
		return fmt.Errorf("--min-local: %d is more than %d", o.MinLocal, conntrack.MaxHeld)
	}
	if !o.AllowBlock && (len(o.BlockSet) > 0 || o.ClearBlocks) {
		return errors.New("--block-set and --clear-blocks are nothing without --allow-block")
	}
	if _, err := o.blockSets(); err != nil {
		return err
	}
	if err := o.validateSource(); err != nil {
		return err
	}
	h := events.Health{Firewall: o.Name, Realm: o.Realm, Labels: o.Label}
	if err := h.Validate(); err != nil {
		return fmt.Errorf("--label: %w", err) // nobody would accept our health
	}
	for _, p := range o.Protect {
		if p != p.Masked() {
			return fmt.Errorf("--protect: %s has bits beyond its length, %s is meant?", p, p.Masked())
		}
	}
	return nil
}

// digest identifies a configuration, with that of the trust file, so that a fleet can be
// checked for firewalls that run with another one: whatever their names, realms and
// labels, in which they have to differ.
func (o *Options) digest(trust string) string {
	c := *o
	c.Name, c.Realm, c.Label = "", "", nil
	return config.Digest(fmt.Appendf(nil, "%+v %s", c, trust))
}

// blockSets reads the names of the operator's sets.
func (o *Options) blockSets() ([]block.SetName, error) {
	var sets []block.SetName
	for _, s := range o.BlockSet {
		n, err := block.ParseSetName(s)
		if err != nil {
			return nil, fmt.Errorf("--block-set: %w", err)
		}
		sets = append(sets, n)
	}
	return sets, nil
}

// blocking says where blocks go, for a person.
func (o *Options) blocking() string {
	switch {
	case !o.AllowBlock:
		return "false"
	case len(o.BlockSet) > 0:
		return "in " + strings.Join(o.BlockSet, " and ")
	}
	return "in table inet " + block.Table
}
