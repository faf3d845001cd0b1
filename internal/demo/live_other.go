//go:build !linux

package demo

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/ctfleet/ctfleet/internal/lab"
)

// newLive says that there is no lab here: nobody may build one.
func newLive(context.Context) (stage, error) {
	return nil, fmt.Errorf("%w: %w", fs.ErrPermission, lab.Permitted())
}
