package producer

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// maxRecords bounds the receipts that wait for the bus.
	maxRecords = 1024
	// recordTime is how long the bus may take to keep one before it is sent
	// again.
	recordTime = 5 * time.Second
)

// record is a receipt, or an act of the producer itself, on its way to the audit stream.
type record struct {
	subject, id string
	message     events.Message
}

// record hands a receipt to recordLoop; the answer to the command does not wait
// for it.
func (p *Producer) record(r *events.Receipt, verb string) {
	receipt := *r
	p.enqueue(record{
		subject: events.AuditSubject(p.opt.Name, verb),
		// One id per attempt, not per command: a refusal or a dry run under a
		// command's id must not keep its real receipt out of the stream. And nobody
		// can guess it, to keep the receipt out with a message of his own.
		id:      rand.Text(),
		message: &receipt,
	})
}

func (p *Producer) enqueue(rec record) {
	p.unwritten.Add(1)
	select {
	case p.records <- rec:
	default:
		p.unwritten.Add(-1)
		p.unrecorded(&rec, fmt.Errorf("%d others wait for the bus", maxRecords))
	}
}

// recordLoop writes receipts to the audit stream, each until the bus has it or
// ctx ends.
func (p *Producer) recordLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			for {
				select {
				case rec := <-p.records:
					p.unrecorded(&rec, context.Cause(ctx))
					continue
				default:
				}
				return nil
			}
		case rec := <-p.records:
			p.publishRecord(ctx, &rec)
			p.unwritten.Add(-1)
		}
	}
}

func (p *Producer) publishRecord(ctx context.Context, rec *record) {
	for {
		attempt, cancel := context.WithTimeout(ctx, recordTime)
		err := p.conn.PublishMessage(attempt, rec.subject, rec.id, rec.message)
		cancel()
		if err == nil {
			return
		}
		p.throttle.Warn(p.log, "cannot record what was done, retrying", "error", err)
		if !daemon.Sleep(ctx, time.Second) {
			p.unrecorded(rec, err)
			return
		}
	}
}

// unrecorded makes the loss of a receipt known where it can still be seen.
func (p *Producer) unrecorded(rec *record, err error) {
	p.metrics.unrecorded.Inc()
	switch m := rec.message.(type) {
	case *events.Receipt:
		p.log.Error("a receipt could not be recorded", "subject", rec.subject, "id", m.ID, "addresses", m.Addresses, "deleted", m.Deleted, "error", err)
	case *events.Act:
		p.log.Error("a reload could not be recorded", "subject", rec.subject, "what", m.What, "error", err)
	}
}
