package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Manager is the service manager that started this process, and wants to hear how it
// is: systemd with Type=notify, by the datagrams that sd_notify(3) describes. A nil
// Manager is nobody.
type Manager struct {
	conn     *net.UnixConn
	watchdog time.Duration // how long it may hear nothing before it ends us; 0: as long as it likes
	patience time.Duration // how long what waits for us to be ready waits
	log      *slog.Logger
	throttle Throttle

	mu    sync.Mutex
	ready bool
	said  string // the status that was sent last
}

// OpenManager finds the manager that the environment names; nil where there is none.
// What cannot be used is logged: a daemon works without.
func OpenManager(log *slog.Logger) *Manager {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	if path[0] != '/' && path[0] != '@' { // @: an abstract name, as package net spells it, too
		log.Warn("NOTIFY_SOCKET names no socket of this host, nobody is told when this program is ready", "value", path)
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		log.Warn("the service manager cannot be told when this program is ready", "error", err)
		return nil
	}
	m := &Manager{conn: conn, log: log, patience: startWithin}
	pid := os.Getenv("WATCHDOG_PID")
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 && (pid == "" || pid == strconv.Itoa(os.Getpid())) {
		m.watchdog = time.Duration(usec) * time.Microsecond
	}
	return m
}

const (
	// lookEvery is how often it is looked whether the program is ready.
	lookEvery = 100 * time.Millisecond
	// startWithin is after what time a program counts as started, whatever it waits for: what
	// comes after it, the boot of a firewall in the end, must not wait for a bus that is away.
	startWithin = 5 * time.Second
)

// Run tells the manager when the program is ready, what it waits for until then, that
// it is alive, and at last that it stops, until ctx ends.
func (m *Manager) Run(ctx context.Context, h Health) error {
	if m == nil {
		<-ctx.Done()
		return nil
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var beat <-chan time.Time
	if m.watchdog > 0 {
		t := time.NewTicker(m.watchdog / 2)
		defer t.Stop()
		beat = t.C
	}
	began := time.Now()
	owed := false // a beat
	for {
		m.tell(h.ready(), time.Since(began) >= m.patience)
		if owed {
			// Asked again at each look: a loop that stood still for a while is told of at once when it goes on.
			if err := h.alive(); err == nil {
				m.send("WATCHDOG=1")
				owed = false
			} else {
				m.throttle.Warn(m.log, "not alive: the service manager is not told otherwise", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			m.send("STOPPING=1\nSTATUS=stopping")
			return m.conn.Close()
		case <-look.C:
		case <-beat:
			owed = true
		}
	}
}

// tell passes on why the program is not ready, and once that it is, or has waited long
// enough.
func (m *Manager) tell(notReady error, started bool) {
	status := "ready"
	if notReady != nil {
		status = "waiting: " + strings.Map(func(r rune) rune {
			if unicode.IsControl(r) {
				return ' ' // a line break would begin another field
			}
			return r
		}, notReady.Error())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	first := (notReady == nil || started) && !m.ready
	if status == m.said && !first {
		return
	}
	m.said, m.ready = status, m.ready || first
	status = "STATUS=" + status
	if first {
		status = "READY=1\n" + status
	}
	m.send(status)
}

func (m *Manager) isReady() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

// Reloading says that files are being read again, Reloaded that this is over. Of a
// program that is not ready yet nobody asks.
func (m *Manager) Reloading() {
	if m != nil && m.isReady() {
		m.send("RELOADING=1" + monotonicField() + "\nSTATUS=reloading")
	}
}

// Reloaded is the other half of Reloading.
func (m *Manager) Reloaded() {
	if m == nil || !m.isReady() {
		return
	}
	m.mu.Lock()
	status := m.said
	m.mu.Unlock()
	m.send("READY=1\nSTATUS=" + status)
}

// send sends one datagram. A manager that takes none must not hold us up.
func (m *Manager) send(state string) {
	err := m.conn.SetWriteDeadline(time.Now().Add(time.Second))
	if err == nil {
		_, err = m.conn.Write([]byte(state))
	}
	if err != nil {
		m.throttle.Warn(m.log, "the service manager cannot be told", "error", err)
	}
}
