package host

import (
	"errors"
	"fmt"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

// ErrNotLinux is why this package and those above it do nothing on another system:
// only Linux has the connection table that ctfleet watches.
var ErrNotLinux = errors.New("capturing needs Linux")

// Facts are what a preflight judges. Sysctls are nil where they could not be
// read.
type Facts struct {
	NetAdmin      bool
	TableError    error // why the table could not be opened, nil when it could
	Tracking      *bool // does anything in this namespace ask for tracking? nil: unknown
	Events        *int  // nf_conntrack_events
	Acct          *int  // nf_conntrack_acct
	TCPLoose      *int  // nf_conntrack_tcp_loose
	BufferGranted int   // bytes
	BufferWanted  int
	AllowFlush    bool
	AllowBlock    bool
	BlockError    error // why blocks cannot be kept, nil when they can or need not
	Unsigned      bool  // commands are accepted without a signature
	Trusted       int   // keys whose commands are accepted
	PeersError    error // why nobody can tell who is connected by SSH, nil when it can be told
}

// eventBytes is what one queued event costs of the socket's buffer: an skb's
// true size, measured on Linux 6.18.
const eventBytes = 1280

// Preflight turns facts into findings, the fatal ones first.
func Preflight(f Facts) []daemon.Finding {
	var out []daemon.Finding
	fatal := func(what, remedy string) { out = append(out, daemon.Finding{Fatal: true, What: what, Remedy: remedy}) }
	note := func(what, remedy string) { out = append(out, daemon.Finding{What: what, Remedy: remedy}) }
	is := func(v *int, want int) bool { return v != nil && *v == want }

	if f.TableError != nil {
		remedy := "Is this kernel built with nf_conntrack and nf_conntrack_netlink (modprobe nf_conntrack_netlink)?"
		switch {
		case errors.Is(f.TableError, ErrNotLinux):
			remedy = "Run it on a firewall; here, --source xml and --source replay read what was written there."
		case !f.NetAdmin:
			remedy = "This process lacks CAP_NET_ADMIN: run as root, or with AmbientCapabilities=CAP_NET_ADMIN; a container needs cap_add: NET_ADMIN and uid 0."
		}
		fatal(fmt.Sprintf("The connection table cannot be opened: %v.", f.TableError), remedy)
		return out
	}
	if is(f.Events, 0) {
		fatal("nf_conntrack_events is 0: the kernel announces no flow.", "sysctl -w net.netfilter.nf_conntrack_events=1")
	}
	if f.BlockError != nil {
		fatal(fmt.Sprintf("Blocks cannot be kept: %v.", f.BlockError), "Without --allow-block this host is watched all the same.")
	}
	if f.Tracking != nil && !*f.Tracking {
		note("Nothing in this network namespace asks for connection tracking, so its table stays empty.",
			"One rule turns it on: nft add table inet filter; nft 'add chain inet filter forward { type filter hook forward priority 0; }'; nft add rule inet filter forward ct state new counter")
	}
	if is(f.Events, 2) {
		note("nf_conntrack_events is 2: flows older than this process end without an event, so active counts are approximate until they are gone.",
			"sysctl -w net.netfilter.nf_conntrack_events=1 makes them exact from the start.")
	}
	if is(f.Acct, 0) {
		note("nf_conntrack_acct is 0: flows end without packet and byte counts.", "sysctl -w net.netfilter.nf_conntrack_acct=1, where they are wanted.")
	}
	if f.BufferGranted < f.BufferWanted {
		note(fmt.Sprintf("The kernel granted a socket buffer of %d KiB instead of %d KiB, which holds %d events.", f.BufferGranted>>10, f.BufferWanted>>10, 2*f.BufferGranted/eventBytes),
			"In a user namespace net.core.rmem_max is the limit; CAP_NET_ADMIN in the host's lifts it. Events are read more often instead.")
	}
	if f.AllowFlush && is(f.TCPLoose, 1) {
		note("nf_conntrack_tcp_loose is 1: after a flush, the next packet of a TCP connection makes a new entry.",
			"A flush frees the table; it does not stop routed TCP. A block does (--allow-block), or sysctl -w net.netfilter.nf_conntrack_tcp_loose=0.")
	}
	if f.AllowBlock && !f.AllowFlush {
		note("--allow-block without --allow-flush: a block leaves the entries that are there, and commands to do both are refused.", "Give both, to have the table freed too.")
	}
	flags, acts, deeds := "", "", ""
	switch {
	case f.AllowFlush && f.AllowBlock:
		flags, acts, deeds = "--allow-flush and --allow-block", "flush this table and block addresses", "flush and block"
	case f.AllowFlush:
		flags, acts, deeds = "--allow-flush", "flush this table", "flush"
	case f.AllowBlock:
		flags, acts, deeds = "--allow-block", "block addresses here", "block"
	default:
		return out
	}
	if f.PeersError != nil {
		note(fmt.Sprintf("Who is connected by SSH cannot be told, so every %s is refused: %v.", deeds, f.PeersError),
			"modprobe tcp_diag; or --ssh-port 0, and --protect for who must be spared.")
	}
	if f.Unsigned {
		note(fmt.Sprintf("%s with --trust none: whoever may publish commands on the bus can %s.", flags, acts), "Restrict who may publish below ct.v1.cmd on the server, or name the keys to trust: ctfleet auth key, --trust FILE.")
	}
	if !f.Unsigned && f.Trusted == 0 {
		note(fmt.Sprintf("%s, but no key is trusted: every %s is refused.", flags, deeds), "ctfleet auth key makes keys and the file for --trust.")
	}
	return out
}
