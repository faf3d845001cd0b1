package api

import (
	_ "embed"
	"net/http"
)

//go:embed openapi.yaml
var description []byte

// openapi serves the description of all this.
func openapi(w http.ResponseWriter, r *http.Request) {
	if err := parse(r); err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/yaml")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(description) // the client may have gone
}
