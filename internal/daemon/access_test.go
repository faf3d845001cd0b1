package daemon

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const token = "0123456789abcdef+/="

func tokenFile(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return name
}

func TestTokenFile(t *testing.T) {
	f := func(content string, mode os.FileMode, want string) {
		t.Helper()
		a := Access{HTTPTokenFile: tokenFile(t, content, mode)}
		err := a.CheckAccess("0.0.0.0:8080")
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q %o: %v, want %q", content, mode, err, want)
		}
		if err != nil && strings.Contains(err.Error(), token) {
			t.Errorf("the error tells the token: %v", err)
		}
	}
	f(token, 0o600, "")
	f(" "+token+"\r\n", 0o440, "")
	f(token, 0o644, "mode 0644: others may read or change it")
	f(token, 0o620, "mode 0620")
	f("", 0o600, "a token has 16 to 4096 characters")
	f("short", 0o600, "a token has 16 to 4096 characters")
	f(strings.Repeat("x", 4097), 0o600, "a token has 16 to 4096 characters")
	f(token+"\n"+token, 0o600, "one line")
	f(token+"ü", 0o600, "one line")
	dir := Access{HTTPTokenFile: t.TempDir()} // what a container engine makes of a file that is not there
	if err := dir.CheckAccess("127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), "is no file") {
		t.Errorf("a directory: %v", err)
	}
	a := Access{HTTPTokenFile: "/nosuch"}
	if err := a.CheckAccess("127.0.0.1:0"); err == nil || !strings.Contains(err.Error(), "--http-token-file: open /nosuch") {
		t.Errorf("no file: %v", err)
	}
}

// TestWithoutToken: what is not loopback is not opened.
func TestWithoutToken(t *testing.T) {
	f := func(listen string, ok bool) {
		t.Helper()
		var a Access
		err := a.CheckAccess(listen)
		if ok != (err == nil) || !ok && !strings.Contains(err.Error(), "give --http-token-file") {
			t.Errorf("%q: %v", listen, err)
		}
	}
	f("127.0.0.1:0", true)
	f("[::1]:8080", true)
	f("localhost:8080", true)
	f(NoListen, true)
	f("", true)
	f("nosuchport", true) // Listen says what is wrong
	f(":8080", false)
	f("0.0.0.0:8080", false)
	f("[::]:8080", false)
	f("192.0.2.1:8080", false)
	f("[::ffff:192.0.2.1]:8080", false)
	// A name that meant loopback when it was checked.
	none := Access{HTTPTokenFile: NoToken}
	if err := none.CheckAccess("0.0.0.0:0"); err != nil {
		t.Errorf("whoever reaches it may read: %v", err)
	}
	if l, err := none.Open("0.0.0.0:0"); err != nil {
		t.Errorf("whoever reaches it may read: %v", err)
	} else {
		l.Close()
	}
	if l, err := new(Access).Open("0.0.0.0:0"); err == nil || l != nil || !strings.Contains(err.Error(), "give --http-token-file") {
		t.Errorf("opened: %v, %v", l, err)
	}
}

func TestGuard(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") })
	for _, listen := range []string{"127.0.0.1:0", "0.0.0.0:0"} { // on loopback it is honoured, too
		a := Access{HTTPTokenFile: tokenFile(t, token+"\n", 0o600)}
		if err := a.CheckAccess(listen); err != nil {
			t.Fatal(err)
		}
		f := func(path, authorization string, want int, challenge string) {
			t.Helper()
			r := httptest.NewRequest(http.MethodGet, path, nil)
			if authorization != "" {
				r.Header.Set("Authorization", authorization)
			}
			w := httptest.NewRecorder()
			a.RequireToken(mux).ServeHTTP(w, r)
			if w.Code != want || w.Header().Get("WWW-Authenticate") != challenge || strings.Contains(w.Body.String(), "secret") != (want == http.StatusOK) {
				t.Errorf("%s, %q: %d %v %s", path, authorization, w.Code, w.Header(), w.Body)
			}
		}
		const ask, wrong = `Bearer realm="ctfleet"`, `Bearer realm="ctfleet", error="invalid_token"`
		f("/api/v1/top", "", 401, ask)
		f("/metrics", "", 401, ask)
		f("/", "", 401, ask)
		f("/healthz", "", 200, "")
		f("/readyz", "", 200, "")
		f("/healthz/", "", 401, ask)
		f("/readyz/../api/v1/top", "", 401, ask)
		f("/api/v1/top", "Bearer "+token, 200, "")
		f("/api/v1/top", "bearer  "+token, 200, "")
		f("/api/v1/top", "Bearer "+token+"x", 401, wrong)
		f("/api/v1/top", "Bearer "+token[1:], 401, wrong)
		f("/api/v1/top", "Bearer", 401, wrong)
		f("/api/v1/top", "Basic "+token, 401, wrong)
		f("/api/v1/top", token, 401, wrong)
	}
}

// TestHeaders: also of what is refused.
func TestHeaders(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /here", func(http.ResponseWriter, *http.Request) {})
	at, stop := serve(t, "127.0.0.1:0", Problems(mux))
	f := func(method, path, host string, want int, contentType string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://"+at+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = host
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		h := resp.Header
		if resp.StatusCode != want || h.Get("Content-Type") != contentType || !strings.HasPrefix(h.Get("Content-Security-Policy"), "default-src 'none';") ||
			h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s: %d %v", method, path, resp.StatusCode, h)
		}
	}
	f(http.MethodGet, "/here", "localhost", 200, "")
	f(http.MethodPost, "/here", "localhost", 405, "application/problem+json")
	f(http.MethodGet, "/nowhere", "localhost", 404, "application/problem+json")
	f(http.MethodGet, "/here", "evil.example", 421, "application/problem+json")
	if err := stop(); err != nil {
		t.Error(err)
	}
}
