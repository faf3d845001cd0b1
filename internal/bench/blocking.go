//go:build linux

package main

import (
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// block is the simplest reader: it waits for each event and is woken by whoever
// forwards the packet.
func block(ns *host.Namespace) (func() mark, error) {
	fd, err := eventSocket(ns, eventBuffer)
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

// deaf joins the events and never reads one. Its buffer holds next to nothing, so the
// kernel builds each message and lets it go: the least that any listener costs.
func deaf(ns *host.Namespace) (func() mark, error) {
	if _, err := eventSocket(ns, 4096); err != nil {
		return nil, err
	}
	return func() mark { return mark{} }, nil
}
