package daemon

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
)

// Access says who may read what is served over HTTP.
type Access struct {
	HTTPTokenFile string `name:"http-token-file" placeholder:"FILE|none" help:"Serve only who sends the token in this file (Authorization: Bearer), but for /healthz, /readyz and the files of the page. Nobody else may read the file. It must be given where the address is not loopback; none: whoever reaches it may read."`

	token [sha256.Size]byte // its digest
}

// NoToken says that whoever reaches the address may read, though it is not loopback:
// something else keeps others away.
const NoToken = "none"

// guarded reports whether a token is needed.
func (a *Access) guarded() bool { return a.HTTPTokenFile != "" && a.HTTPTokenFile != NoToken }

// minToken is how long a token must be: 16 characters of base64 are 96 bits.
const minToken = 16

// maxToken is more than any has.
const maxToken = 4096

// CheckAccess reads the token, if there is one, and refuses to serve everybody who reaches
// an address that is not loopback. It must be called before RequireToken.
func (a *Access) CheckAccess(listen string) error {
	if a.guarded() {
		token, err := readToken(a.HTTPTokenFile)
		if err != nil {
			return fmt.Errorf("--http-token-file: %w", err)
		}
		a.token = sha256.Sum256([]byte(token))
		return nil
	}
	if listen == NoListen || listen == "" {
		return nil
	}
	addr, err := net.ResolveTCPAddr("tcp", listen)
	if err != nil {
		return nil // who opens it says so
	}
	return a.Permits(addr)
}

// Permits returns why nothing may be served at an address: it is not loopback, and
// there is no token.
func (a *Access) Permits(addr net.Addr) error {
	if tcp, ok := addr.(*net.TCPAddr); a.HTTPTokenFile == "" && ok && !tcp.IP.IsLoopback() {
		return fmt.Errorf("--listen %s: whoever reaches it could read everything: give --http-token-file, or a loopback address", addr)
	}
	return nil
}

// Open is Listen for an address that CheckAccess has let pass.
func (a *Access) Open(listen string) (net.Listener, error) {
	l, err := Listen(listen)
	if err != nil || l == nil {
		return nil, err
	}
	// A name may mean another address by now.
	if err := a.Permits(l.Addr()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func readToken(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no file", file)
	}
	// A group may read it: that is how container engines hand secrets to a user.
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return "", fmt.Errorf("%s has mode %04o: others may read or change it, chmod 600 it", file, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if len(token) < minToken || len(data) > maxToken {
		return "", fmt.Errorf("%s: a token has %d to %d characters; openssl rand -hex 32 makes one", file, minToken, maxToken)
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c >= 0x7f {
			return "", fmt.Errorf("%s: a token is one line of printable ASCII without spaces", file)
		}
	}
	return token, nil
}

// RequireToken lets through who has the token, and everybody where there is none. The
// questions of an orchestrator are answered to all.
func (a *Access) RequireToken(next http.Handler) http.Handler {
	if !a.guarded() {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/healthz" && r.URL.Path != "/readyz" && !a.knows(r) {
			challenge, detail := `Bearer realm="ctfleet"`, "a bearer token is needed: Authorization: Bearer TOKEN"
			if r.Header.Get("Authorization") != "" {
				challenge, detail = challenge+`, error="invalid_token"`, "this is not the token in --http-token-file"
			}
			w.Header().Set("WWW-Authenticate", challenge)
			Problem(w, http.StatusUnauthorized, detail)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// knows compares digests, which takes as long whatever was sent.
func (a *Access) knows(r *http.Request) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got := sha256.Sum256([]byte(strings.TrimSpace(token)))
	return subtle.ConstantTimeCompare(got[:], a.token[:]) == 1 && strings.EqualFold(scheme, "Bearer")
}
