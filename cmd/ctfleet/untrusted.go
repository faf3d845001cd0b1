package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/vmihailenco/msgpack/v5"
)

// maxDepth is deeper than any message nests.
const maxDepth = 32

// untrusted decodes any msgpack into what encoding/json can print. The msgpack
// library by itself is no match for hostile bytes here: it recurses as deep as
// they nest, and reserves what their headers claim.
func untrusted(data []byte) (any, error) {
	r := bytes.NewReader(data)
	u := &reader{in: r, dec: msgpack.NewDecoder(r)}
	v, err := u.value(0)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it ends too early")
	}
	if err == nil && r.Len() > 0 {
		err = fmt.Errorf("%d bytes follow its end", r.Len())
	}
	if err != nil {
		return nil, fmt.Errorf("this is no msgpack message, near byte %d: %w", len(data)-r.Len(), err)
	}
	return v, nil
}

type reader struct {
	in  *bytes.Reader
	dec *msgpack.Decoder
}

func (u *reader) value(depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it nests deeper than %d", maxDepth)
	}
	c, err := u.dec.PeekCode()
	if err != nil {
		return nil, err
	}
	switch {
	case c >= 0x90 && c <= 0x9f, c == 0xdc, c == 0xdd:
		return u.array(depth)
	case c >= 0x80 && c <= 0x8f, c == 0xde, c == 0xdf:
		return u.object(depth)
	case c >= 0xc7 && c <= 0xc9, c >= 0xd4 && c <= 0xd8:
		return u.extension()
	case c >= 0xa0 && c <= 0xbf, c >= 0xd9 && c <= 0xdb:
		b, err := u.bytes()
		return string(b), err
	case c >= 0xc4 && c <= 0xc6:
		return u.bytes()
	}
	v, err := u.dec.DecodeInterface()
	if err != nil {
		return nil, err
	}
	switch f := v.(type) { // JSON has no such numbers
	case float64:
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Sprint(f), nil
		}
	case float32:
		if f := float64(f); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Sprint(f), nil
		}
	}
	return v, nil
}

// fits refuses a length that the rest of the input cannot hold.
func (u *reader) fits(n int) error {
	if n < 0 || n > u.in.Len() {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// bytes reads a string or bin value, whose claimed length is believed only as
// far as there is input.
func (u *reader) bytes() ([]byte, error) {
	n, err := u.dec.DecodeBytesLen()
	if err == nil {
		err = u.fits(n)
	}
	if err != nil {
		return nil, err
	}
	b := make([]byte, n)
	return b, u.dec.ReadFull(b)
}

func (u *reader) array(depth int) (any, error) {
	n, err := u.dec.DecodeArrayLen()
	if err == nil {
		err = u.fits(n)
	}
	if err != nil {
		return nil, err
	}
	list := []any{}
	for range n {
		v, err := u.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

func (u *reader) object(depth int) (any, error) {
	n, err := u.dec.DecodeMapLen()
	if err == nil {
		err = u.fits(n)
	}
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	for range n {
		k, err := u.value(maxDepth) // a scalar: what nests in a key has no place in JSON
		if err != nil {
			return nil, err
		}
		key := fmt.Sprint(k)
		if _, again := m[key]; again {
			return nil, fmt.Errorf("key %.40q appears twice", key)
		}
		if m[key], err = u.value(depth + 1); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// extension is shown as its type and bytes.
func (u *reader) extension() (any, error) {
	id, n, err := u.dec.DecodeExtHeader()
	if err == nil {
		err = u.fits(n)
	}
	if err != nil {
		return nil, err
	}
	data := make([]byte, n)
	if err := u.dec.ReadFull(data); err != nil {
		return nil, err
	}
	return map[string]any{"ext": id, "data": data}, nil
}
