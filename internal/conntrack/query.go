//go:build linux

package conntrack

import (
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"

	"github.com/ctfleet/ctfleet/internal/host"
)

// openQuery opens the library's socket for what is rare and small.
func openQuery(ns *host.Namespace) (conn *netfilter.Conn, err error) {
	err = ns.Do(func() (err error) {
		conn, err = netfilter.Dial(nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return conn, nil
}

// query asks for a dump and returns its messages.
func query(conn *netfilter.Conn, h netfilter.Header, attrs ...netfilter.Attribute) ([]netlink.Message, error) {
	h.Flags = netlink.Request | netlink.Dump
	req, err := netfilter.MarshalNetlink(h, attrs)
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	return conn.Query(req)
}
