package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Heartbeat is the name of the alert that always fires.
const Heartbeat = "ctfleet-heartbeat"

// alertmanagerAlert is one alert of its API, version 2.
type alertmanagerAlert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
	EndsAt      time.Time         `json:"endsAt"`
}

// missed is after how many repetitions that did not come an alert ends by itself.
const missed = 3

// alertmanagerBody writes alerts as Alertmanager takes them: the labels are what an
// alert is known by, so nothing that changes is among them.
func alertmanagerBody(alerts []events.Alert, now time.Time, every time.Duration) ([]byte, error) {
	out := []alertmanagerAlert{{
		Labels:      map[string]string{"alertname": Heartbeat, "severity": "none"},
		Annotations: map[string]string{"summary": "ctfleet watches. When this alert is gone, it does not."},
		StartsAt:    now, EndsAt: now.Add(missed * every),
	}}
	for i := range alerts {
		a := &alerts[i]
		x := alertmanagerAlert{
			Labels: map[string]string{
				"alertname": a.Rule, "severity": a.Severity, "scope": a.Scope, "realm": a.Realm, "key": a.Key, "track": a.Track, "metric": a.Metric, "id": a.ID,
			},
			Annotations: map[string]string{"summary": a.Text, "value": number(a.Value), "threshold": number(a.Count), "peak": number(a.Peak)},
			StartsAt:    time.UnixMilli(a.Started), EndsAt: now.Add(missed * every),
		}
		if a.State == events.Resolved {
			x.EndsAt = time.UnixMilli(a.Updated)
			if !x.EndsAt.After(x.StartsAt) {
				x.EndsAt = x.StartsAt.Add(time.Millisecond)
			}
			if x.EndsAt.After(now) { // by the fleet's clock, which may be ahead of ours
				x.EndsAt = now
			}
		}
		if x.StartsAt.After(now) {
			x.StartsAt = now
		}
		out = append(out, x)
	}
	return json.Marshal(out)
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// webhookMessage is what a webhook is told. With no alerts it is a heartbeat.
type webhookMessage struct {
	Version string         `json:"version"` // of the program
	Time    int64          `json:"time"`    // Unix ms
	EveryS  float64        `json:"every_s"` // after which the next one comes at the latest
	Alerts  []events.Alert `json:"alerts"`
}

func webhookBody(alerts []events.Alert, now time.Time, every time.Duration) ([]byte, error) {
	if alerts == nil {
		alerts = []events.Alert{}
	}
	return json.Marshal(webhookMessage{daemon.ProgramVersion(), now.UnixMilli(), every.Seconds(), alerts})
}

// maxAnswer is how much of an answer is read: of an error's, to show it.
const maxAnswer = 512

func (t *target) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url, bytes.NewReader(body))
	if err != nil {
		return hide(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := t.client.Do(req)
	if err != nil {
		return hide(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer)) // best effort: the status says what counts
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("%s: %.200q", res.Status, bytes.TrimSpace(text))
	}
	return nil
}

// hide takes the URL out of an error: it may hold a password or a token.
func hide(err error) error {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		return u.Err
	}
	return err
}
