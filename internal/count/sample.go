package count

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// sampleSize is how many of a realm's latest NEW events are kept to tell whom a
// key talks to.
const sampleSize = 4096

// sampleOfBatch is about how many of a batch's events go there: more would say
// the same of it.
const sampleOfBatch = 128

// ring holds a realm's latest NEW events.
type ring struct {
	flows []sighting
	next  int
}

type sighting struct {
	at       *site
	src, dst events.Addr
	dport    uint16
	proto    uint8
	ipv6     bool
}

// sample takes NEW events, spread over all of a site's part of a batch.
func (r *ring) sample(at *site, all []events.Brief) {
	stride := max(len(all)/sampleOfBatch, 1)
	for i := 0; i < len(all); i++ {
		e := &all[i]
		if e.Type != events.New {
			continue
		}
		r.add(sighting{at: at, src: e.Src, dst: e.Dst, dport: e.DstPort, proto: e.Proto, ipv6: e.IPv6})
		i += stride - 1
	}
}

func (r *ring) add(s sighting) {
	if len(r.flows) < sampleSize {
		r.flows = append(r.flows, s)
		return
	}
	r.flows[r.next] = s
	r.next = (r.next + 1) % sampleSize
}

// Sample returns the most frequent peers (the addresses on the other side) and
// services (tcp/443) of key among the realm's latest NEW events, largest first,
// at most limit each, and how many of those events are of key. It is a sample: the
// ring holds 4096 events of the realm.
func (c *Counter) Sample(track Track, place Place, key netip.Prefix, limit int) (peers, ports []events.Share, size uint64) {
	r := c.realms[place.Realm]
	if r == nil {
		return nil, nil, 0
	}
	_, ipv6 := events.FromNetip(key.Addr())
	byPeer, byPort := map[events.Addr]uint64{}, map[string]uint64{}
	for i := range r.recent.flows {
		f := &r.recent.flows[i]
		own, peer := f.src, f.dst
		if track == ByDst {
			own, peer = f.dst, f.src
		}
		if f.ipv6 != ipv6 || place.Firewall != "" && f.at.Firewall != place.Firewall || !key.Contains(own.Netip(ipv6)) {
			continue
		}
		size++
		byPeer[peer]++
		byPort[service(f.proto, f.dport)]++
	}
	for a, n := range byPeer {
		peers = append(peers, events.Share{Value: a.Netip(ipv6).String(), Count: n})
	}
	for s, n := range byPort {
		ports = append(ports, events.Share{Value: s, Count: n})
	}
	return largest(peers, limit), largest(ports, limit), size
}

func largest(s []events.Share, limit int) []events.Share {
	slices.SortFunc(s, func(a, b events.Share) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Value, b.Value))
	})
	return s[:min(max(limit, 0), len(s))]
}

// service names what a flow goes to: protocol and port, or the type of ICMP.
func service(proto uint8, dport uint16) string {
	port := strconv.Itoa(int(dport))
	switch proto {
	case 1:
		return "icmp/" + strconv.Itoa(int(dport>>8))
	case 6:
		return "tcp/" + port
	case 17:
		return "udp/" + port
	case 33:
		return "dccp/" + port
	case 58:
		return "icmpv6/" + strconv.Itoa(int(dport>>8))
	case 132:
		return "sctp/" + port
	case 136:
		return "udplite/" + port
	}
	return "protocol " + strconv.Itoa(int(proto))
}
