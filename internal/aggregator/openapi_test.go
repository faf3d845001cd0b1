package aggregator

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/ctfleet/ctfleet/internal/api"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// description is the OpenAPI file as it is served, and a running API that must be
// what it says.
type description struct {
	t        *testing.T
	base     string
	doc      map[string]any
	compiler *jsonschema.Compiler
	answered map[string]bool // path and status
}

const bearer = "0123456789abcdef"

func describe(t *testing.T, base string) *description {
	t.Helper()
	d := &description{t: t, base: base, compiler: jsonschema.NewCompiler(), answered: map[string]bool{}}
	resp, body := d.get("/api/v1/openapi.yaml")
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/yaml" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	data, err := yaml.YAMLToJSON(body)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	d.doc = doc.(map[string]any)
	// Readers skip keys that they do not know, so the file allows them; here each must
	// be described.
	for _, s := range d.at("components", "schemas") {
		if s := s.(map[string]any); s["properties"] != nil {
			s["additionalProperties"] = false
		}
	}
	d.compiler.DefaultDraft(jsonschema.Draft2020)
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource("file:///openapi.json", doc); err != nil {
		t.Fatal(err)
	}
	return d
}

// at returns the object at a place of the document.
func (d *description) at(path ...string) map[string]any {
	d.t.Helper()
	at := d.doc
	for _, key := range path {
		next, ok := at[key].(map[string]any)
		if !ok {
			d.t.Fatalf("the file has nothing at %v", path)
		}
		at = next
	}
	return at
}

func (d *description) get(path string, change ...func(*http.Request)) (*http.Response, []byte) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.base+path, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	for _, c := range change {
		c(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		d.listen(resp.Body)
		return resp, nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp, body
}

// valid checks a value against a schema of the file.
func (d *description) valid(what, pointer string, body []byte) {
	d.t.Helper()
	schema, err := d.compiler.Compile("file:///openapi.json#" + pointer)
	if err != nil {
		d.t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err == nil {
		err = schema.Validate(v)
	}
	if err != nil {
		d.t.Errorf("%s: %v\n%s", what, err, body)
	}
}

// ask checks the answer to a request for a path of the file.
func (d *description) ask(path, request string, status int, change ...func(*http.Request)) []byte {
	d.t.Helper()
	resp, body := d.get(request, change...)
	if resp.StatusCode != status {
		d.t.Errorf("%s: %d %s, want %d", request, resp.StatusCode, body, status)
		return body
	}
	d.answered[fmt.Sprint(path, " ", status)] = true
	code := fmt.Sprint(status)
	response := d.at("paths", path, "get", "responses", code)
	pointer := "/paths/" + strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(path) + "/get/responses/" + code
	if ref, ok := response["$ref"].(string); ok {
		pointer = strings.TrimPrefix(ref, "#")
		response = d.at(strings.Split(pointer, "/")[1:]...)
	}
	kind := resp.Header.Get("Content-Type")
	content, _ := response["content"].(map[string]any)
	if content[kind] == nil {
		d.t.Errorf("%s: %s is not described", request, kind)
	} else if strings.HasSuffix(kind, "json") {
		d.valid(request, pointer+"/content/"+strings.ReplaceAll(kind, "/", "~1")+"/schema", body)
	}
	return body
}

// listen checks events until one of each kind has come.
func (d *description) listen(body io.Reader) {
	d.t.Helper()
	schemas := map[string]string{"fleet": "FleetTick", "alert": "Alert", "decision": "AuditEntry", "receipt": "AuditEntry", "act": "AuditEntry", "gap": "Gap"}
	missing := maps.Clone(schemas)
	kind := ""
	for lines := bufio.NewScanner(body); len(missing) > 0 && lines.Scan(); {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch field {
		case "event":
			kind = value
		case "data":
			if schemas[kind] == "" {
				d.t.Errorf("event %q is not described", kind)
				continue
			}
			d.valid("event "+kind, "/components/schemas/"+schemas[kind], []byte(value))
			delete(missing, kind)
		}
	}
	if len(missing) > 0 {
		d.t.Errorf("no event came of %v", missing)
	}
}

// TestOpenAPI checks every answer of a running API against the file that describes
// it: each status of each path, each parameter.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	a, agg := story(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(bearer), 0o600); err != nil {
		t.Fatal(err)
	}
	access := daemon.Access{HTTPTokenFile: token}
	if err := access.CheckAccess("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	l, err := access.Open("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := daemon.Mux(prometheus.NewRegistry(), daemon.Health{Ready: agg.Ready})
	stream := api.Register(mux, agg, nil)
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	streaming, endStream := context.WithCancel(ctx)
	defer endStream()
	ended := make(chan error, 1)
	go func() { ended <- stream.Run(streaming) }()
	go func() {
		_ = daemon.Serve(ctx, l, access.RequireToken(daemon.Problems(mux)), slog.New(slog.DiscardHandler))
	}()
	d := describe(t, "http://"+l.Addr().String())

	var w events.BatchWriter // with all that an event may say
	if err := w.Append(&events.Event{
		Time: 1e15, Type: events.Destroy, Flags: events.UnheldBefore, Proto: 6, ID: 1, Status: events.StatusConfirmed | events.StatusSrcNAT, Zone: 7,
		NAT: true, Reply: events.Tuple{SrcPort: 443, DstPort: 1024}, HasCounters: true, Counters: events.Counters{OrigPackets: 1, OrigBytes: 60},
	}); err != nil {
		t.Fatal(err)
	}
	data, err := w.Encode(&events.Header{Firewall: "fw-x", Realm: "lisbon", Seq: 1, Epoch: 1, Sent: 1e15, Clean: true})
	if err == nil {
		_, err = a.conn.JS.Publish(t.Context(), events.EventsSubject("fw-x"), data)
	}
	if err != nil {
		t.Fatal(err)
	}
	good := map[string][]string{
		"/api/v1/top": {
			"", "?by=dst&metric=active&limit=5", "?metric=unreplied&window=60&realm=lisbon", "?firewall=fw-a", "?prefix=198.18.0.0/16", "?allowlisted=hide",
		},
		"/api/v1/firewalls":      {""},
		"/api/v1/alerts":         {"", "?state=firing", "?state=past&since=1h"},
		"/api/v1/addresses/{ip}": {"198.18.0.7", "203.0.113.4", "2001:db8::7?realm=lisbon"},
		"/api/v1/audit":          {"", "?since=1h&address=198.18.0.7", "?firewall=fw-a&limit=1"},
		"/api/v1/events":         {"", "?ip=198.18.0.7&from-ip=198.18.0.0/15,2001:db8::/32&to-ip=203.0.113.4&protocol=tcp&port=443&type=new,destroy&firewall=fw-a&since=5m&limit=3", "?not=true&type=new"},
		"/api/v1/openapi.yaml":   {""},
	}
	for path, requests := range good {
		for _, r := range requests {
			d.ask(path, strings.Replace(path, "{ip}", "", 1)+r, http.StatusOK)
		}
	}
	if list := d.ask("/api/v1/events", "/api/v1/events?firewall=fw-x", http.StatusOK); !bytes.Contains(list, []byte(`"counters":`)) || !bytes.Contains(list, []byte(`"reply":`)) {
		t.Errorf("%s", list)
	}
	for path := range d.at("paths") {
		request := strings.Replace(path, "{ip}", "198.18.0.7", 1)
		// The parameters that there are are those that the file has.
		var known []string
		params, _ := d.at("paths", path, "get")["parameters"].([]any)
		for _, p := range params {
			if p := p.(map[string]any); p["in"] == "query" {
				known = append(known, p["name"].(string))
			}
		}
		var problem struct{ Detail string }
		if err := json.Unmarshal(d.ask(path, request+"?nosuch=1", http.StatusBadRequest), &problem); err != nil {
			t.Error(err)
		}
		_, list, _ := strings.Cut(problem.Detail, "these are known: ")
		if got := strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' }); !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(known))) {
			t.Errorf("%s takes %v, the file says %v", path, got, known)
		}
		d.ask(path, request, http.StatusUnauthorized, func(r *http.Request) { r.Header.Del("Authorization") })
		d.ask(path, request, http.StatusMethodNotAllowed, func(r *http.Request) { r.Method = http.MethodPost })
		d.ask(path, request, http.StatusMisdirectedRequest, func(r *http.Request) { r.Host = "evil.example" })
	}
	resp, body := d.get("/api/v1/nosuch")
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	d.valid("a path that is none", "/components/schemas/Problem", body)

	// One event of each kind, while somebody listens.
	tell := time.AfterFunc(0, func() {
		for i := 0; streaming.Err() == nil && i < 100; i++ {
			al := events.Alert{ID: fmt.Sprint(i), Rule: "new-flows", State: events.Resolved, Severity: "info", Scope: "fleet", Realm: "default", Key: "198.18.0.7", Track: "by_src", Metric: "new"}
			for subject, m := range map[string]events.Message{
				alertSubject(&al):                    &al,
				events.AuditSubject("fw-a", "flush"): &events.Receipt{Firewall: "fw-a", Verb: "flush", Refused: []events.Refusal{}},
				events.AuditSubject(events.ActorResponder, events.VerbDecision): &events.Decision{Rule: "new-flows", Outcome: events.OutcomeSimulated},
				events.AuditSubject(events.ActorOperator, events.VerbAllowlist): &events.Act{Verb: events.VerbAllowlist},
			} {
				data, err := events.Marshal(m)
				if err == nil {
					_, err = a.conn.JS.Publish(streaming, subject, data)
				}
				if err != nil && streaming.Err() == nil {
					t.Error(err)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
	})
	defer tell.Stop()
	d.ask("/api/v1/stream", "/api/v1/stream", http.StatusOK, func(r *http.Request) { r.Header.Set("Last-Event-ID", "other-1") })
	endStream()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	d.ask("/api/v1/stream", "/api/v1/stream", http.StatusServiceUnavailable)
	if err := a.conn.JS.DeleteStream(t.Context(), "CT_ALERTS"); err != nil {
		t.Fatal(err)
	}
	d.ask("/api/v1/alerts", "/api/v1/alerts?state=past", http.StatusServiceUnavailable)
	d.ask("/api/v1/addresses/{ip}", "/api/v1/addresses/198.18.0.7", http.StatusServiceUnavailable)
	if err := a.conn.JS.DeleteStream(t.Context(), "CT_AUDIT"); err != nil {
		t.Fatal(err)
	}
	d.ask("/api/v1/audit", "/api/v1/audit", http.StatusServiceUnavailable)

	if err := a.conn.JS.DeleteStream(t.Context(), "CT_EVENTS"); err != nil {
		t.Fatal(err)
	}
	d.ask("/api/v1/events", "/api/v1/events", http.StatusServiceUnavailable)

	for path := range d.at("paths") {
		for status := range d.at("paths", path, "get", "responses") {
			// The history can only be read in vain when its disk fails.
			if what := path + " " + status; !d.answered[what] && what != "/api/v1/top 503" {
				t.Errorf("no answer was checked: %s", what)
			}
		}
	}
}
