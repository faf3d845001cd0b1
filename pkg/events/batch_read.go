package events

import (
	"bytes"
	"fmt"
	"io"

	"github.com/vmihailenco/msgpack/v5"
)

// Decoder decodes batches without allocating per event; per batch it allocates
// only when a firewall's name or realm changes. The zero value is ready. It is
// for one goroutine.
type Decoder struct {
	r   bytes.Reader
	dec *msgpack.Decoder
	in  []byte
}

// Decode reads one batch. It refuses more than MaxBatchEvents or MaxBatchBytes,
// another version, a missing or repeated field and columns that disagree, and
// skips keys it does not know. b's columns alias data. On error b is undefined.
func (d *Decoder) Decode(data []byte, b *Batch) error {
	if len(data) > MaxBatchBytes {
		return fmt.Errorf("batch: %d bytes, at most %d are allowed", len(data), MaxBatchBytes)
	}
	if d.dec == nil {
		d.dec = msgpack.NewDecoder(&d.r)
	}
	d.in = data
	d.r.Reset(data)
	d.dec.Reset(&d.r)

	*b = Batch{Header: Header{Firewall: b.Firewall, Realm: b.Realm}}
	fields, err := d.dec.DecodeMapLen()
	if err != nil || fields < 0 {
		return fmt.Errorf("batch: not a msgpack map")
	}
	var seen uint32
	for range fields {
		key, err := d.bytes()
		if err != nil {
			return fmt.Errorf("batch: key: %w", err)
		}
		bit, err := d.field(string(key), b)
		if err != nil {
			return fmt.Errorf("batch: field %.32q: %w", key, err)
		}
		if seen&bit != 0 {
			return fmt.Errorf("batch: field %.32q appears twice", key)
		}
		seen |= bit
	}
	if d.r.Len() > 0 {
		return fmt.Errorf("batch: %d bytes after its end", d.r.Len())
	}
	if missing := required &^ seen; missing != 0 {
		for i, k := range fieldNames {
			if missing&(1<<i) != 0 {
				return fmt.Errorf("batch: field %q is missing", k)
			}
		}
	}
	if b.Phase&^phaseMask != 0 {
		return fmt.Errorf("batch: field \"phase\": unknown bits in %#x", b.Phase)
	}
	return b.check()
}

// headerNames are the fields before the columns, as written.
var headerNames = [...]string{"v", "sent", "clean", "seq", "total", "lost", "fw", "realm", "boot", "epoch", "phase", "base", "n", "after"}

// fieldNames gives each known field its bit in Decode's account of what it has
// seen: header, dense columns, then the sparse columns, which may be missing.
var fieldNames = func() (names [len(headerNames) + len(columns)]string) {
	copy(names[:], headerNames[:])
	for i, c := range columns {
		names[len(headerNames)+i] = c.key
	}
	return names
}()

const required = uint32(1)<<(len(headerNames)+9) - 1

// field reads the value of key into b and returns the field's bit, 0 for an
// unknown key.
func (d *Decoder) field(key string, b *Batch) (bit uint32, err error) {
	i := 0
	for i < len(fieldNames) && fieldNames[i] != key {
		i++
	}
	if i == len(fieldNames) {
		return 0, skip(d.dec)
	}
	bit = 1 << i
	if i >= len(headerNames) {
		*columns[i-len(headerNames)].col(b), err = d.bytes()
		return bit, err
	}
	var u uint64
	switch key {
	case "v":
		if u, err = d.dec.DecodeUint64(); err == nil {
			err = checkVersion(u, batchVersions)
		}
	case "sent":
		b.Sent, err = d.dec.DecodeInt64()
	case "clean":
		b.Clean, err = d.dec.DecodeBool()
	case "fw":
		b.Firewall, err = d.name(b.Firewall, CheckFirewall)
	case "realm":
		b.Realm, err = d.name(b.Realm, CheckRealm)
	case "boot":
		var p []byte
		if p, err = d.bytes(); err == nil && copy(b.Boot[:], p) != len(p) || len(p) != len(b.Boot) {
			err = fmt.Errorf("%d bytes, not %d", len(p), len(b.Boot))
		}
	case "seq":
		b.Seq, err = d.dec.DecodeUint64()
	case "epoch":
		u, err = d.dec.DecodeUint64()
		b.Epoch = uint32(u)
		if u != uint64(b.Epoch) {
			err = fmt.Errorf("%d is out of range", u)
		}
	case "phase":
		u, err = d.dec.DecodeUint64()
		b.Phase = Phase(u)
		if u > 255 {
			err = fmt.Errorf("%d is out of range", u)
		}
	case "base":
		b.Base, err = d.dec.DecodeInt64()
	case "n":
		u, err = d.dec.DecodeUint64()
		b.Count = int(min(u, MaxBatchEvents+1))
	case "total":
		b.Total, err = d.dec.DecodeUint64()
	case "lost":
		b.Lost, err = d.dec.DecodeUint64()
	case "after":
		b.After, err = d.dec.DecodeUint64()
	}
	return bit, err
}

// bytes reads a string or bin value as a slice of the message.
func (d *Decoder) bytes() ([]byte, error) {
	n, err := d.dec.DecodeBytesLen()
	if err != nil {
		return nil, err
	}
	if n < 0 || n > d.r.Len() {
		return nil, io.ErrUnexpectedEOF
	}
	at := len(d.in) - d.r.Len()
	_, err = d.r.Seek(int64(n), io.SeekCurrent)
	return d.in[at : at+n : at+n], err
}

// name reads a name, keeping the string it had, which was checked, when that is
// the same.
func (d *Decoder) name(had string, check func(string) error) (string, error) {
	p, err := d.bytes()
	if err != nil {
		return "", err
	}
	if had != "" && string(p) == had {
		return had, nil
	}
	s := string(p)
	if err := check(s); err != nil {
		return "", err
	}
	return s, nil
}

// skip passes over one value of any depth, without recursion: foreign bytes
// must not choose the depth of our stack.
func skip(dec *msgpack.Decoder) error {
	for left := 1; left > 0; left-- {
		c, err := dec.PeekCode()
		if err != nil {
			return err
		}
		n := 0
		switch {
		case c >= 0x90 && c <= 0x9f, c == 0xdc, c == 0xdd:
			n, err = dec.DecodeArrayLen()
		case c >= 0x80 && c <= 0x8f, c == 0xde, c == 0xdf:
			n, err = dec.DecodeMapLen()
			n *= 2
		default:
			err = dec.Skip()
		}
		if err != nil {
			return err
		}
		if n > MaxBatchBytes {
			return io.ErrUnexpectedEOF
		}
		left += n
	}
	return nil
}
