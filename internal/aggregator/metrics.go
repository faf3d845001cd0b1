package aggregator

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func (a *Aggregator) register(reg *prometheus.Registry) {
	a.refused = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_aggregator_refused_messages_total", Help: "Messages from the bus that could not be used."}, []string{"kind"})
	a.fired = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_alerts_total", Help: "Alert messages by state and severity."}, []string{"state", "severity"})
	a.dropped = prometheus.NewCounter(prometheus.CounterOpts{Name: "ctfleet_alerts_dropped_total", Help: "Alerts that were not published: the bus took none for too long, or not this one."})
	if reg != nil {
		reg.MustRegister(a.refused, a.fired, a.dropped, a)
	}
}

func (a *Aggregator) unregister() {
	if reg := a.deps.Registry; reg != nil {
		for _, c := range []prometheus.Collector{a.refused, a.fired, a.dropped, a} {
			reg.Unregister(c)
		}
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descEntries    = desc("nf_conntrack_entries", "Entries in a firewall's table.", "firewall")
	descLimit      = desc("nf_conntrack_entries_limit", "Limit of a firewall's table.", "firewall")
	descDrop       = desc("nf_conntrack_stat_drop", "Packets dropped because the table was full.", "firewall")
	descEarlyDrop  = desc("nf_conntrack_stat_early_drop", "Entries dropped to make room.", "firewall")
	descInsertFail = desc("nf_conntrack_stat_insert_failed", "Entries that could not be inserted.", "firewall")
	descActive     = desc("ctfleet_active_flows", "Unexpired entries, by events and resyncs; absent while not known.", "firewall")
	descEvents     = desc("ctfleet_counted_events_total", "Events counted.", "firewall")
	descOpened     = desc("ctfleet_new_flows_total", "New flows counted.", "firewall")
	descLost       = desc("ctfleet_producer_lost_events_total", "Events that a producer knows it lost.", "firewall")
	descMissing    = desc("ctfleet_missing_lost_events_total", "Events sent, by the producer's own count, that never arrived here.", "firewall")
	descDuplicates = desc("ctfleet_duplicate_batches_total", "Batches that came again.", "firewall")
	descAge        = desc("ctfleet_firewall_age_seconds", "Time since a firewall's last report.", "firewall")
	descStopped    = desc("ctfleet_firewall_stopped", "1 when a firewall's producer announced its end, 0 when not.", "firewall")
	descFirewalls  = desc("ctfleet_firewalls", "Firewalls by state.", "state")
	descLag        = desc("ctfleet_stream_lag_messages", "Batches in the stream that had not been sent to the aggregator when it counted the last.")
	descBehind     = desc("ctfleet_stream_lag_seconds", "How long after the server took it the last batch was counted.")
	descKeys       = desc("ctfleet_keys", "Lines held in all counts: one for an address, and one more for each firewall where several see it.")
	descBytes      = desc("ctfleet_count_bytes", "Memory of all counts.")
	descEvicted    = desc("ctfleet_evicted_keys_total", "Lines pushed out because a table was full.")
	descTooLate    = desc("ctfleet_too_late_events_total", "Events older than the longest window when they came.")
	descFiring     = desc("ctfleet_alerts_firing", "Alerts that fire now.")
	descPastRows   = desc("ctfleet_history_rows_total", "Rows written to the history.")
	descPastDrops  = desc("ctfleet_history_dropped_total", "Rows that were not written to the history: its disk is slow, full or broken.")
	descPastBytes  = desc("ctfleet_history_bytes", "Size of the history's file and its log.")
	descTooOld     = desc("ctfleet_too_old_batches_total", "Batches that were not counted: they came too late to tell whether they had been.", "firewall")
	descZoneLost   = desc("ctfleet_zone_lost_events_total", "Events that were not counted: their firewall has too many conntrack zones.", "firewall")
	descTop        = desc("ctfleet_top_flows", "With --metrics-top: flows of the largest addresses of each realm's firewalls together; new ones of the last 10 s, or active, where these are known of all of them.", "by", "metric", "realm", "address")
	descHeld       = desc("ctfleet_alerts_held", "Alerts held back by max_firing.")
)

// Describe implements prometheus.Collector.
func (a *Aggregator) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(a, ch) }

// maxMetricsTop is the most that --metrics-top may be.
const maxMetricsTop = 100

// collectTop exports the largest addresses, if that is wanted. Counting waits for one
// pass over a table at a time.
func (a *Aggregator) collectTop(ch chan<- prometheus.Metric) {
	if a.opt.MetricsTop == 0 {
		return
	}
	for track, by := range map[count.Track]string{count.BySrc: events.BySrc, count.ByDst: events.ByDst} {
		for _, metric := range []count.Metric{count.Opened, count.Active} {
			a.mu.Lock()
			top := a.counter.TopOfAll(count.Set{Track: track, Metric: metric}, always[0], a.opt.MetricsTop)
			unknown := map[string]bool{} // realms with a firewall whose active flows are not known yet
			for _, e := range top {
				unknown[e.Realm] = len(a.counter.Unknown(count.Place{Realm: e.Realm})) > 0
			}
			a.mu.Unlock()
			for _, e := range top {
				if metric == count.Active && unknown[e.Realm] {
					continue
				}
				ch <- prometheus.MustNewConstMetric(descTop, prometheus.GaugeValue, float64(e.Value), by, metric.String(), e.Realm, keyText(e.Key))
			}
		}
	}
}

// Collect implements prometheus.Collector. Unless it was asked for (collectTop), there
// is no label with an address: that would be as many series as addresses.
func (a *Aggregator) Collect(ch chan<- prometheus.Metric) {
	a.collectTop(ch)
	a.mu.Lock()
	defer a.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	now := time.Now()
	states := map[string]int{events.StateFresh: 0, events.StateStale: 0, events.StateSilent: 0, events.StateStopped: 0}
	for name, f := range a.fleet {
		states[f.state(now)]++
		if f.health.Source == "" { // otherwise nothing is known of the table
			gauge(descEntries, float64(f.health.Table.Count), name)
			gauge(descLimit, float64(f.health.Table.Limit), name)
			counter(descDrop, f.health.Kernel.Drop, name)
			counter(descEarlyDrop, f.health.Kernel.EarlyDrop, name)
			counter(descInsertFail, f.health.Kernel.InsertFailed, name)
		}
		gauge(descAge, now.Sub(f.seen).Seconds(), name)
		stopped := 0.0
		if f.health.Stopping {
			stopped = 1
		}
		gauge(descStopped, stopped, name)
		acc, ok := a.counter.Account(name)
		if !ok {
			continue
		}
		if acc.ActiveKnown {
			gauge(descActive, float64(acc.Active), name)
		}
		counter(descEvents, acc.Events, name)
		counter(descOpened, acc.Opened, name)
		counter(descLost, acc.Lost, name)
		counter(descMissing, acc.Missing, name)
		counter(descDuplicates, acc.Duplicates, name)
		counter(descTooOld, acc.TooOld, name)
		counter(descZoneLost, acc.ZoneEvents, name)
	}
	for s, n := range states {
		gauge(descFirewalls, float64(n), s)
	}
	gauge(descLag, float64(a.lag))
	gauge(descBehind, a.behind.Seconds())
	st := a.counter.Stats()
	gauge(descKeys, float64(st.Keys))
	gauge(descBytes, float64(st.Bytes))
	counter(descEvicted, st.Evicted)
	counter(descTooLate, st.TooLate)
	rules := a.engine.Stats()
	gauge(descFiring, float64(rules.Firing))
	gauge(descHeld, float64(rules.Held))
	if a.past != nil {
		st := a.past.Stats()
		counter(descPastRows, st.Rows)
		counter(descPastDrops, st.Dropped)
		gauge(descPastBytes, float64(st.Bytes))
	}
}
