package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
)

// ReloadServers has each server of the cluster read its configuration again, as
// SIGHUP does, and returns their names. The identity that connects must be of the
// system account.
func ReloadServers(ctx context.Context, flags Flags) (names []string, err error) {
	c, err := Connect(Config{Flags: flags, Role: "system", Name: "reload"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	servers, err := c.servers(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range servers {
		if e := c.reload(ctx, s.ID); e != nil {
			err = errors.Join(err, fmt.Errorf("server %s: %w", printable(s.Name), e))
			continue
		}
		names = append(names, printable(s.Name))
	}
	return names, err
}

// pingWait is how long the servers of a cluster may take to say that they are there, each after
// the one before.
const pingWait = 400 * time.Millisecond

type serverInfo struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

// servers asks who is there.
func (c *Conn) servers(ctx context.Context) (found []serverInfo, err error) {
	const subject = "$SYS.REQ.SERVER.PING.IDZ" // not PING: at most one answer in 5 s
	ctx, done := c.denials.asking(ctx, subject)
	defer done(&err)
	inbox := c.NC.NewInbox()
	sub, err := c.NC.SubscribeSync(inbox)
	if err != nil {
		return nil, err
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection goes anyway
	if err := c.NC.PublishRequest(subject, inbox, nil); err != nil {
		return nil, err
	}
	for wait := 5 * time.Second; ; wait = pingWait {
		next, cancel := context.WithTimeout(ctx, wait)
		m, err := sub.NextMsgWithContext(next)
		cancel()
		switch {
		case errors.Is(err, context.DeadlineExceeded) && len(found) > 0:
			return found, nil
		case err != nil:
			return nil, fmt.Errorf("no server answers: is this a key of the system account? %w", err)
		}
		var s serverInfo
		if err := json.Unmarshal(m.Data, &s); err != nil || s.ID == "" {
			return nil, fmt.Errorf("a server's answer cannot be read: %.200q", m.Data)
		}
		found = append(found, s)
	}
}

func (c *Conn) reload(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	m, err := c.NC.RequestMsgWithContext(ctx, &nats.Msg{Subject: "$SYS.REQ.SERVER." + id + ".RELOAD"})
	if err != nil {
		return err
	}
	var answer struct {
		Error *struct {
			Description string `json:"description"`
		} `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &answer); err != nil {
		return fmt.Errorf("its answer cannot be read: %.200q", m.Data)
	}
	if answer.Error != nil {
		return errors.New(printable(answer.Error.Description))
	}
	return nil
}
