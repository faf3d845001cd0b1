package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type decodeCmd struct{}

func (*decodeCmd) Run(ctx context.Context) error {
	data, err := interruptible(ctx, func() ([]byte, error) { return io.ReadAll(io.LimitReader(os.Stdin, events.MaxBatchBytes+1)) })
	if err != nil {
		return fmt.Errorf("read standard input: %w", err)
	}
	v, err := decode(data)
	if err != nil {
		return err
	}
	return printJSON(os.Stdout, v)
}

// decodedBatch is a batch for people.
type decodedBatch struct {
	Firewall string           `json:"firewall"`
	Realm    string           `json:"realm"`
	Boot     string           `json:"boot"`
	Seq      uint64           `json:"seq"`
	Epoch    uint32           `json:"epoch"`
	Phase    events.Phase     `json:"phase"`
	Sent     int64            `json:"sent"`
	Clean    bool             `json:"clean"`
	Total    uint64           `json:"total"`
	Lost     uint64           `json:"lost"`
	After    uint64           `json:"after"`
	Events   []observe.Fields `json:"events"`
}

// decode reads any message of the bus: a batch, or a map.
func decode(data []byte) (any, error) {
	if len(data) == 0 {
		return nil, errors.New("standard input is empty: one message is expected there")
	}
	if len(data) > events.MaxBatchBytes {
		return nil, fmt.Errorf("the message has more than %d bytes: none of ours is so large", events.MaxBatchBytes)
	}
	var dec events.Decoder
	var b events.Batch
	batchErr := dec.Decode(data, &b)
	if batchErr == nil {
		return readable(&b), nil
	}
	v, err := untrusted(data)
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("this is no msgpack map, hence no message of ours")
	}
	if looksLikeBatch(m) {
		return nil, fmt.Errorf("a batch that cannot be read: %w", batchErr)
	}
	return m, nil
}

// looksLikeBatch tells a broken or newer batch from a map message, none of which
// has these keys.
func looksLikeBatch(m map[string]any) bool {
	_, base := m["base"]
	_, n := m["n"]
	return base || n
}

func readable(b *events.Batch) *decodedBatch {
	out := &decodedBatch{Firewall: b.Firewall, Realm: b.Realm, Boot: b.Boot.String(), Seq: b.Seq, Epoch: b.Epoch, Phase: b.Phase,
		Sent: b.Sent, Clean: b.Clean, Total: b.Total, Lost: b.Lost, After: b.After, Events: []observe.Fields{}}
	var e events.Event
	for r := b.Events(); r.Next(&e); {
		out.Events = append(out.Events, observe.FieldsOf(&e))
	}
	return out
}
