package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
)

// ErrDenied is returned when the server does not let us publish what a question takes:
// this identity's role has not the permission.
var ErrDenied = errors.New("the server does not permit it to this key")

// denials tells those who wait for an answer that the server refused their question: it
// says so apart from it, and nobody would ever answer.
type denials struct {
	mu      sync.Mutex
	waiting map[*waiter]bool
}

// waiter is somebody who asks on subjects that contain a text.
type waiter struct {
	subject string
	cancel  context.CancelCauseFunc
}

// publishDenied finds the subject in what the server says.
var publishDenied = regexp.MustCompile(`(?i)publish to "(\S+)"`)

// note tells of an error of the connection. It reports whether somebody waited for it.
func (d *denials) note(err error) (told bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return false
	}
	m := publishDenied.FindStringSubmatch(err.Error())
	if m == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for w := range d.waiting {
		if strings.Contains(m[1], w.subject) {
			w.cancel(fmt.Errorf("%s: %w", m[1], ErrDenied))
			told = true
		}
	}
	return told
}

// asking returns a context that ends when the server refuses a subject that contains the text, and
// a function for the end of the question: it replaces an error of that context by its cause.
func (d *denials) asking(ctx context.Context, subject string) (asked context.Context, done func(*error)) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &waiter{subject, cancel}
	d.mu.Lock()
	if d.waiting == nil {
		d.waiting = map[*waiter]bool{}
	}
	d.waiting[w] = true
	d.mu.Unlock()
	return ctx, func(err *error) {
		d.mu.Lock()
		delete(d.waiting, w)
		d.mu.Unlock()
		if cause := context.Cause(ctx); *err != nil && errors.Is(cause, ErrDenied) {
			*err = cause
		}
		cancel(nil)
	}
}
