package window

// A Scan visits all lines of a table in steps, between which the table may change.
// A key that is there from the first step to the last is visited, now and then
// twice; one that comes or goes meanwhile may or may not be.
type Scan struct {
	t      *Table
	shares bool   // the keys are done
	next   uint32 // lines below this are still to be visited
}

// Scan begins a scan.
func (t *Table) Scan() *Scan { return &Scan{t: t, next: uint32(t.keys.n)} }

// A Sight is a line that has something: of a key in total, of one member, or both
// where only one has the key.
type Sight struct {
	Key    Key
	Member Member // whose it is, where One
	Total  bool   // these are the key's totals
	One    bool   // these are the member's
	Count  uint64 // within the window
	Gauge  uint64 // what is shown
}

// Step visits so many lines and reports whether there are more. The query is of
// this moment.
//
// It goes from the last line to the first, keys before shares: where a line is
// taken out the last one takes its place, which has been visited then, and a key
// that is split meanwhile has its share appended to what is still to come.
func (s *Scan) Step(lines int, series Series, q Query, fn func(*Sight)) (more bool) {
	for ; lines > 0; lines-- {
		from := &s.t.keys
		if s.shares {
			from = &s.t.shares
		}
		s.next = min(s.next, uint32(from.n))
		if s.next == 0 {
			if s.shares {
				return false
			}
			s.shares, s.next = true, uint32(s.t.shares.n)
			continue
		}
		s.next--
		p := from.at(s.next)
		l := p.line()
		sight := Sight{Member: l.owner, Total: !s.shares, One: l.owner != several, Count: s.t.read(p, series, q), Gauge: uint64(max(s.t.held(p), 0))}
		if sight.Count > 0 || sight.Gauge > 0 {
			sight.Key = l.key()
			fn(&sight)
		}
	}
	return true
}
