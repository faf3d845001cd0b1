package block

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// Table is the name of our own table, of family inet.
	Table = "ctfleet"

	// MinFor and MaxFor bound for how long a prefix is blocked at a time. The kernel
	// looks for elements that have ended about once a second; one that is to stay
	// for longer than a day is a rule, which somebody should write.
	MinFor = time.Second
	MaxFor = events.MaxBlockS * time.Second

	// MaxEntries bounds how many prefixes are blocked at a time.
	MaxEntries = 1 << 16

	// Forever is what is left of an element that somebody added without an end.
	Forever = time.Duration(math.MaxInt64)

	comment = "ctfleet" // of our elements in an operator's set
)

// ErrFull is wrapped by Add's error when there is no room for another entry: ours
// are MaxEntries already, or as many elements as an operator's set may have are in
// it.
var ErrFull = errors.New("no room for another block")

// Config says where to block.
type Config struct {
	Namespace *host.Namespace // nil: the process's own. It has to stay open as long as the Blocker is used
	Sets      []SetName       // sets that the operator owns and has rules for, at most one per address family; none: our own table
}

// Entry is a blocked prefix.
type Entry struct {
	Prefix netip.Prefix
	Left   time.Duration // until it ends, in milliseconds; Forever where somebody added it without an end
}

// Blocker blocks prefixes. All methods may be called concurrently. It holds no
// resource of the system between calls.
type Blocker struct {
	ns   *host.Namespace
	sets sets
	max  int // MaxEntries

	mu    sync.Mutex // held for a whole operation, which reads the kernel's state before it changes it
	count int        // of entries, at least: how many there were when they were last listed, and those added since
}

// sets is where blocks are kept. Prefixes are valid and masked, durations whole
// milliseconds.
type sets interface {
	// check tells what is wrong with the sets, if they are to exist already.
	check(*kernel) error
	// add blocks for d or longer and returns for how long. It asks room before it
	// makes so many elements more.
	add(k *kernel, p netip.Prefix, d time.Duration, room func(int) error) (time.Duration, error)
	remove(*kernel, netip.Prefix) (bool, error)
	// has reports whether remove would find something.
	has(*kernel, netip.Prefix) (bool, error)
	list(*kernel) ([]Entry, error)
	clear(*kernel) error
}

// New returns a Blocker. Sets that it is given have to exist, be of type ipv4_addr
// or ipv6_addr, and have the flag timeout. Without any, nothing is created yet; a
// table that a producer before has left is found again, with all that is blocked.
// An error that a set is not as it should be has the line for nft that mends it.
func New(cfg Config) (*Blocker, error) {
	b := &Blocker{ns: cfg.Namespace, sets: setsOf(&cfg), max: MaxEntries}
	err := b.do(func(k *kernel) error {
		if err := b.sets.check(k); err != nil {
			return err
		}
		return b.recount(k)
	})
	if err != nil {
		return nil, fmt.Errorf("open block sets: %w", err)
	}
	return b, nil
}

// Add blocks prefix for d from now on, between MinFor and MaxFor. What is blocked
// already stays so until the later of both ends. The entry says how long that is;
// its prefix is masked. The kernel counts in ticks, so that a block may end up to
// 10 ms early.
func (b *Blocker) Add(prefix netip.Prefix, d time.Duration) (Entry, error) {
	prefix, err := blockable(prefix)
	if err == nil && (d < MinFor || d > MaxFor) {
		err = fmt.Errorf("for %s: want %s to %s", d, MinFor, MaxFor)
	}
	e := Entry{Prefix: prefix}
	if err == nil {
		d = (d + time.Millisecond - 1).Truncate(time.Millisecond)
		err = b.do(func(k *kernel) (err error) {
			e.Left, err = b.sets.add(k, prefix, d, func(n int) error { return b.room(k, n) })
			return err
		})
	}
	if err != nil {
		return Entry{}, fmt.Errorf("block %s: %w", prefix, err)
	}
	return e, nil
}

// Delete ends the block of prefix, and reports whether there was one. In our own
// table that is the entry of exactly this prefix: what another one covers stays
// blocked. In an operator's interval set it is whatever lies within prefix and is
// ours.
func (b *Blocker) Delete(prefix netip.Prefix) (found bool, err error) {
	prefix, err = blockable(prefix)
	if err == nil {
		err = b.do(func(k *kernel) (err error) {
			found, err = b.sets.remove(k, prefix)
			return err
		})
	}
	if err != nil {
		return false, fmt.Errorf("unblock %s: %w", prefix, err)
	}
	return found, nil
}

// Has reports whether Delete would end a block of prefix.
func (b *Blocker) Has(prefix netip.Prefix) (found bool, err error) {
	prefix, err = blockable(prefix)
	if err == nil {
		err = b.do(func(k *kernel) (err error) {
			found, err = b.sets.has(k, prefix)
			return err
		})
	}
	if err != nil {
		return false, fmt.Errorf("look up %s: %w", prefix, err)
	}
	return found, nil
}

// List returns what is blocked and ours, sorted by prefix.
func (b *Blocker) List() (list []Entry, err error) {
	err = b.do(func(k *kernel) (err error) {
		list, err = b.sets.list(k)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list blocks: %w", err)
	}
	slices.SortFunc(list, func(x, y Entry) int { return x.Prefix.Compare(y.Prefix) })
	return list, nil
}

// Clear ends all blocks: it removes our own table, or our elements from the
// operator's sets. It is for a producer that stops for good; one that will come
// back leaves its blocks.
func (b *Blocker) Clear() error {
	if err := b.do(b.sets.clear); err != nil {
		return fmt.Errorf("clear blocks: %w", err)
	}
	return nil
}

// do runs one operation.
func (b *Blocker) do(fn func(*kernel) error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	k, err := open(b.ns)
	if err != nil {
		return err
	}
	defer k.close()
	return fn(k)
}

// room makes sure that n entries more are not too many. Most have ended by the
// time that the count reaches the limit, so it counts again before it says no.
func (b *Blocker) room(k *kernel, n int) error {
	if b.count+n > b.max {
		if err := b.recount(k); err != nil {
			return err
		}
	}
	if b.count+n > b.max {
		return fmt.Errorf("%w: %d prefixes are blocked", ErrFull, b.count)
	}
	b.count += n
	return nil
}

func (b *Blocker) recount(k *kernel) error {
	list, err := b.sets.list(k)
	b.count = len(list)
	return err
}

// blockable returns the prefix masked, or says why it cannot be blocked.
func blockable(p netip.Prefix) (netip.Prefix, error) {
	switch {
	case !p.IsValid():
		return p, errors.New("not a prefix")
	case p.Addr().Is4In6():
		return p, errors.New("an IPv4 address in the form of IPv6, which no packet has: write the IPv4 prefix")
	case p.Bits() == 0:
		return p, errors.New("that is every address")
	}
	return p.Masked(), nil
}
