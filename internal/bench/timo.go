//go:build linux

package main

import (
	"fmt"
	"os"
	"sync/atomic"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"

	"github.com/ctfleet/ctfleet/internal/host"
)

// listen receives events the way ti-mo/conntrack's users do, with as large a
// buffer as ours.
func listen(ns *host.Namespace) (func() mark, error) {
	var conn *conntrack.Conn
	err := ns.Do(func() (err error) {
		conn, err = conntrack.Dial(&netlink.Config{})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadBuffer(eventBuffer); err != nil {
		return nil, err
	}
	received := make(chan conntrack.Event, 4096)
	failed, err := conn.Listen(received, 1, []netfilter.NetlinkGroup{netfilter.GroupCTNew, netfilter.GroupCTDestroy})
	if err != nil {
		return nil, err
	}
	var n atomic.Uint64
	go func() {
		for range received {
			n.Add(1)
		}
	}()
	go func() {
		for err := range failed { // it receives nothing after that
			fmt.Fprintln(os.Stderr, "ti-mo Listen:", err)
		}
	}()
	return func() mark { return mark{Events: n.Load()} }, nil
}
