package web

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"path"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

//go:embed page
var page embed.FS

// types are the content types by extension. Those that mime would give depend on the
// machine.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// A file is one part of the page.
type file struct {
	name, kind, tag string
	body            []byte
}

// Handler serves the page at / and its parts below /assets/.
func Handler() http.Handler {
	mux := http.NewServeMux()
	entries, err := page.ReadDir("page")
	if err != nil {
		panic(err) // it is part of the program
	}
	for _, e := range entries {
		f := read(e.Name())
		if f.name == "index.html" {
			mux.Handle("GET /{$}", f)
		} else {
			mux.Handle("GET /assets/"+f.name, f)
		}
	}
	return daemon.Problems(mux)
}

func read(name string) *file {
	body, err := page.ReadFile("page/" + name)
	if err != nil {
		panic(err)
	}
	f := &file{name: name, kind: types[path.Ext(name)], body: body}
	if f.kind == "" {
		panic(fmt.Sprintf("page/%s: of what type is it?", name))
	}
	sum := sha256.Sum256(body)
	f.tag = `"` + hex.EncodeToString(sum[:8]) + `"`
	return f
}

// ServeHTTP lets a browser keep the file and ask each time whether it is still the
// same: another version of the program has another page.
func (f *file) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.kind)
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", f.tag)
	http.ServeContent(w, r, f.name, time.Time{}, bytes.NewReader(f.body))
}
