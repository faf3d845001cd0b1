package conntrack

import (
	"errors"

	"github.com/ctfleet/ctfleet/internal/host"
)

// ErrClosed is returned by whatever is called on, or waits for, something that
// was closed.
var ErrClosed = errors.New("conntrack: closed")

// ReaderConfig says where to listen.
type ReaderConfig struct {
	Namespace   *host.Namespace // nil: the process's own
	BufferBytes int             // wanted receive buffer; 0 means DefaultBuffer
}
