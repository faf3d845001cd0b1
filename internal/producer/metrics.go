package producer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// metrics are the producer's own; the per-address numbers belong to the API.
type metrics struct {
	refused    *prometheus.CounterVec // foreign or broken messages by kind
	refusals   *prometheus.CounterVec // what the guard or the kernel refused, by reason
	flushed    prometheus.Counter
	blocks     prometheus.Counter
	unrecorded prometheus.Counter
	all        []prometheus.Collector
}

func (m *metrics) register(reg *prometheus.Registry, p *Producer) {
	labels := prometheus.Labels{"firewall": p.opt.Name}
	m.refused = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_refused_messages_total", Help: "Messages from the bus that could not be read.", ConstLabels: labels}, []string{"kind"})
	m.refusals = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_flush_refused_total", Help: "Commands or entries that were refused, by reason.", ConstLabels: labels}, []string{"reason"})
	m.flushed = prometheus.NewCounter(prometheus.CounterOpts{Name: "ctfleet_flushed_entries_total", Help: "Entries deleted on command.", ConstLabels: labels})
	m.blocks = prometheus.NewCounter(prometheus.CounterOpts{Name: "ctfleet_blocked_prefixes_total", Help: "Addresses and prefixes blocked, or for longer, on command.", ConstLabels: labels})
	m.unrecorded = prometheus.NewCounter(prometheus.CounterOpts{Name: "ctfleet_unrecorded_receipts_total", Help: "Receipts that never reached the audit stream.", ConstLabels: labels})
	m.all = []prometheus.Collector{m.refused, m.refusals, m.flushed, m.blocks, m.unrecorded}
	add := func(name, help string, typ prometheus.ValueType, get func(*events.StreamHealth) uint64) {
		opts := prometheus.Opts{Name: name, Help: help, ConstLabels: labels}
		f := func() float64 { s := p.Stream(); return float64(get(&s)) }
		if typ == prometheus.CounterValue {
			m.all = append(m.all, prometheus.NewCounterFunc(prometheus.CounterOpts(opts), f))
		} else {
			m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts(opts), f))
		}
	}
	counter, gauge := prometheus.CounterValue, prometheus.GaugeValue
	add("ctfleet_events_total", "Events read from the kernel.", counter, func(s *events.StreamHealth) uint64 { return s.Events })
	add("ctfleet_published_events_total", "Events acknowledged by the bus.", counter, func(s *events.StreamHealth) uint64 { return s.Published })
	add("ctfleet_socket_lost_events_total", "Events that the kernel dropped because the socket's buffer was full.", counter, func(s *events.StreamHealth) uint64 { return s.LostSocket })
	add("ctfleet_ring_lost_events_total", "Events dropped here because the ring was full while the bus was away.", counter, func(s *events.StreamHealth) uint64 { return s.LostRing })
	add("ctfleet_bus_lost_events_total", "Events that the bus refused for good.", counter, func(s *events.StreamHealth) uint64 { return s.LostBus })
	add("ctfleet_undecodable_lost_events_total", "Kernel messages that could not be read.", counter, func(s *events.StreamHealth) uint64 { return s.Undecodable })
	add("ctfleet_resyncs_total", "Dumps of the whole table that were completed.", counter, func(s *events.StreamHealth) uint64 { return s.Resyncs })
	add("ctfleet_ring_bytes", "Bytes that wait for the bus or its acknowledgement.", gauge, func(s *events.StreamHealth) uint64 { return s.RingBytes })
	add("ctfleet_socket_buffer_bytes", "Socket buffer that the kernel granted.", gauge, func(s *events.StreamHealth) uint64 { return s.Buffer })
	add("ctfleet_socket_buffer_used_bytes", "Socket buffer in use.", gauge, func(s *events.StreamHealth) uint64 { return s.BufferUsed })
	add("ctfleet_live_flows", "Flows held in the current epoch.", gauge, func(s *events.StreamHealth) uint64 { return s.Live })
	m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ctfleet_publish_lag_seconds", Help: "Age of the oldest batch without acknowledgement.", ConstLabels: labels},
		func() float64 { _, _, oldest := p.ring.Usage(); return oldest.Round(time.Millisecond).Seconds() }))
	if reg != nil {
		reg.MustRegister(m.all...)
	}
}

func (m *metrics) unregister(reg *prometheus.Registry) {
	if reg == nil {
		return
	}
	for _, c := range m.all {
		reg.Unregister(c)
	}
}
