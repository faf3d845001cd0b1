package api

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// A param is one parameter of an endpoint and what takes its value.
type param struct {
	name string
	take func(string) error
}

// parse reads the parameters of a request. One that is unknown, repeated or badly
// escaped is refused, so that a misspelt "windw" does not answer another question.
func parse(r *http.Request, known ...param) error {
	values, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fmt.Errorf("parameters: %w", err)
	}
	for _, p := range known {
		given := values[p.name]
		delete(values, p.name)
		switch {
		case len(given) > 1:
			return fmt.Errorf("parameter %s: is given %d times", p.name, len(given))
		case len(given) == 1:
			if err := p.take(given[0]); err != nil {
				return fmt.Errorf("parameter %s: %w", p.name, err)
			}
		}
	}
	for name := range values {
		if len(known) == 0 {
			return fmt.Errorf("unknown parameter %.60q: %.200q has none", name, r.URL.Path)
		}
		names := make([]string, len(known))
		for i, p := range known {
			names[i] = p.name
		}
		return fmt.Errorf("unknown parameter %.60q, these are known: %s", name, strings.Join(names, ", "))
	}
	return nil
}

// text takes any value: who answers checks it.
func text(name string, to *string) param {
	return param{name, func(v string) error { *to = v; return nil }}
}

func number(name string, to *int) param {
	return param{name, func(v string) error {
		n, err := strconv.Atoi(v)
		if err != nil {
			return fmt.Errorf("%.60q is no number", v)
		}
		*to = n
		return nil
	}}
}

// moment takes a time: RFC 3339, or Unix ms as in answers.
func moment(name string, to *int64) param {
	return param{name, func(v string) (err error) { *to, err = unixMS(v); return err }}
}

func unixMS(v string) (int64, error) {
	if n, err := strconv.ParseInt(v, 10, 64); err == nil && n > 0 {
		return n, nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil || t.UnixMilli() <= 0 {
		return 0, fmt.Errorf("%.60q is no time: 2026-11-25T14:05:00Z, or Unix ms", v)
	}
	return t.UnixMilli(), nil
}

// since takes a time, or how long ago it was.
func since(to *int64) param {
	return param{"since", func(v string) (err error) {
		if ago, wrong := time.ParseDuration(v); wrong == nil {
			if *to = time.Now().Add(-ago).UnixMilli(); ago <= 0 || *to <= 0 {
				err = fmt.Errorf("%.60q is not how long ago: 1h", v)
			}
			return err
		}
		if *to, err = unixMS(v); err != nil {
			err = fmt.Errorf("%w, or how long ago: 1h", err)
		}
		return err
	}}
}

// values takes one value or several, separated by commas.
func values(name string, to *[]string) param {
	return param{name, func(v string) error {
		if *to = strings.Split(v, ","); len(*to) > maxValues {
			return fmt.Errorf("has %d values, %d are allowed", len(*to), maxValues)
		}
		return nil
	}}
}

func ports(to *[]uint16) param {
	var list []string
	p := values("port", &list)
	return param{p.name, func(v string) error {
		if err := p.take(v); err != nil {
			return err
		}
		for _, port := range list {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return fmt.Errorf("%.60q is no port", port)
			}
			*to = append(*to, uint16(n))
		}
		return nil
	}}
}

func yes(name string, to *bool) param {
	return param{name, func(v string) error {
		if *to = v == "true"; !*to && v != "false" {
			return fmt.Errorf("%.60q is neither true nor false", v)
		}
		return nil
	}}
}

func firewall(to *string) param {
	return param{"firewall", func(v string) error { *to = v; return events.CheckFirewall(v) }}
}

// prefix takes an address or a prefix, as messages spell it.
func prefix(name string, to *string) param {
	return param{name, func(v string) error {
		p, err := events.ParsePrefix(v)
		if err == nil {
			*to = events.FormatPrefix(p)
		}
		return err
	}}
}
