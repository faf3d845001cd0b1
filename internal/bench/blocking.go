package main

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// block is the simplest reader: it waits for each event and is woken by whoever
// forwards the packet.
func block(ns *host.Namespace) (func() mark, error) {
	fd, err := eventSocket(ns)
	if err != nil {
		return nil, err
	}
	var n atomic.Uint64
	go func() {
		buf := make([]byte, 8192)
		for {
			if _, _, err := unix.Recvfrom(fd, buf, 0); err == nil {
				n.Add(1)
			} else if err != unix.EINTR {
				return
			}
		}
	}()
	return func() mark { return mark{Events: n.Load()} }, nil
}
