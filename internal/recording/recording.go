// Package recording is batches in a file, exactly as they were on the bus, with the
// subject and the stream's time of each: what `ctfleet observe -o raw` writes, and
// what replays read. docs/reference/wire.md specifies the bytes.
//
// A recording is a sequence of msgpack values, so that any msgpack library reads
// one: a map that says what it is, then a map for each message. One that is cut off
// is good up to there.
package recording

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Version of the format that this package writes, and the only one it reads.
const Version = 1

// kind is what the first map says it is.
const kind = "ctfleet-recording"

// Bounds of what is read: a name on the bus is shorter, and so is a key.
const (
	maxSubject = 256
	maxKey     = 64
	maxFields  = 16
)

// Message is one batch.
type Message struct {
	Time    time.Time // the stream's
	Subject string
	Data    []byte // valid until the next one is read
}

// Writer writes a recording. Flush hands on what it has gathered.
type Writer struct {
	out *bufio.Writer
	enc *msgpack.Encoder
}

// NewWriter begins a recording.
func NewWriter(w io.Writer) (*Writer, error) {
	out := bufio.NewWriterSize(w, 1<<20)
	r := &Writer{out: out, enc: msgpack.NewEncoder(out)}
	return r, r.write(2, func() error {
		return errors.Join(r.enc.EncodeString("kind"), r.enc.EncodeString(kind), r.enc.EncodeString("v"), r.enc.EncodeUint(Version))
	})
}

// Write adds a message.
func (w *Writer) Write(m Message) error {
	return w.write(3, func() error {
		err := errors.Join(
			w.enc.EncodeString("time"), w.enc.EncodeInt64(m.Time.UnixNano()),
			w.enc.EncodeString("subject"), w.enc.EncodeString(m.Subject),
			w.enc.EncodeString("data"), w.enc.EncodeBytesLen(len(m.Data)))
		if err == nil {
			_, err = w.out.Write(m.Data)
		}
		return err
	})
}

func (w *Writer) write(fields int, content func() error) error {
	if err := errors.Join(w.enc.EncodeMapLen(fields), content()); err != nil {
		return fmt.Errorf("write recording: %w", err)
	}
	return nil
}

// Flush writes out what was gathered.
func (w *Writer) Flush() error {
	if err := w.out.Flush(); err != nil {
		return fmt.Errorf("write recording: %w", err)
	}
	return nil
}

// Errors of a Reader.
var (
	ErrNoRecording = errors.New("this is no recording: ctfleet observe -o raw writes one")
	// ErrCutOff is wrapped where the file ends within a message: all before it is good.
	ErrCutOff = errors.New("the recording is cut off")

	errUnknown = errors.New("this version has no such field")
)

// Reader reads a recording.
type Reader struct {
	in   *counted
	dec  *msgpack.Decoder
	data []byte
	n    int // messages read
}

// counted is a buffered reader that knows how much was taken from it.
type counted struct {
	*bufio.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

func (c *counted) ReadByte() (byte, error) {
	b, err := c.Reader.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func (c *counted) UnreadByte() error {
	err := c.Reader.UnreadByte()
	if err == nil {
		c.n--
	}
	return err
}

// NewReader reads the beginning, and refuses what is no recording, or one of another
// version.
func NewReader(in io.Reader) (*Reader, error) {
	c := &counted{Reader: bufio.NewReaderSize(in, 1<<20)}
	r := &Reader{in: c, dec: msgpack.NewDecoder(c)}
	var what string
	var version uint64
	err := r.fields(func(key string) (err error) {
		switch key {
		case "kind":
			what, err = r.string(maxKey)
		case "v":
			version, err = r.dec.DecodeUint64()
		default:
			err = errUnknown
		}
		return err
	})
	switch {
	case what == kind && version > Version:
		return nil, fmt.Errorf("recording: %w %d, this program reads %d", events.ErrVersion, version, Version)
	case err != nil || what != kind:
		return nil, ErrNoRecording
	case version != Version:
		return nil, fmt.Errorf("recording: %w %d, this program reads %d", events.ErrVersion, version, Version)
	}
	return r, nil
}

// Offset is how many bytes were read.
func (r *Reader) Offset() int64 { return r.in.n }

// Next reads a message into m. It returns io.EOF at the end.
func (r *Reader) Next(m *Message) error {
	if _, err := r.in.Peek(1); err == io.EOF { //nolint:errorlint // Peek returns it as it is
		return io.EOF
	}
	var have uint
	err := r.fields(func(key string) (err error) {
		switch key {
		case "time":
			var ns int64
			ns, err = r.dec.DecodeInt64()
			m.Time = time.Unix(0, ns)
			have |= 1
		case "subject":
			m.Subject, err = r.string(maxSubject)
			have |= 2
		case "data":
			r.data, err = r.bytes(r.data, events.MaxBatchBytes)
			m.Data = r.data
			have |= 4
		default:
			err = errUnknown
		}
		return err
	})
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w after message %d", ErrCutOff, r.n)
	case err == nil && have != 7:
		err = errors.New("a field is missing")
	}
	if err != nil {
		return fmt.Errorf("message %d of the recording: %w", r.n+1, err)
	}
	r.n++
	return nil
}

// fields reads a map whose values fn reads.
func (r *Reader) fields(fn func(key string) error) error {
	n, err := r.dec.DecodeMapLen()
	if err == nil && (n < 0 || n > maxFields) {
		err = fmt.Errorf("a map of %d fields", n)
	}
	for i := 0; err == nil && i < n; i++ {
		var key string
		if key, err = r.string(maxKey); err == nil {
			if err = fn(key); err != nil {
				err = fmt.Errorf("field %.32q: %w", key, err)
			}
		}
	}
	return err
}

func (r *Reader) string(most int) (string, error) {
	p, err := r.bytes(nil, most)
	return string(p), err
}

// bytes reads a str or bin of a bounded length into buf.
func (r *Reader) bytes(buf []byte, most int) ([]byte, error) {
	n, err := r.dec.DecodeBytesLen()
	if err != nil {
		return buf, err
	}
	if n < 0 || n > most {
		return buf, fmt.Errorf("%d bytes, at most %d are allowed", n, most)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	return buf, r.dec.ReadFull(buf)
}
