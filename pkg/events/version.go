package events

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The versions that this package writes. How they change, and what may be added
// without another one, stands in docs/reference/wire.md.
const (
	BatchVersion   = 1 // of the batch
	MessageVersion = 1 // of all messages but the batch
)

// The versions that it reads: its own and, once there is one, the one before. So in a
// fleet that is upgraded step by step, whoever is upgraded first understands those who
// are not yet. The golden messages in testdata of each of these must be read.
var (
	batchVersions   = []int{1}
	messageVersions = []int{1}
)

// ErrVersion is wrapped by decoders when a message is of a version that they do
// not know: it is newer than this program, older than the version before it, or no
// message of ours.
var ErrVersion = errors.New("unknown version")

// checkVersion returns nil for one of those that are read.
func checkVersion[V int | uint64](v V, reads []int) error {
	if slices.ContainsFunc(reads, func(r int) bool { return V(r) == v }) {
		return nil
	}
	return fmt.Errorf("%w %d, this program reads %s", ErrVersion, v, strings.Trim(fmt.Sprint(reads), "[]"))
}
