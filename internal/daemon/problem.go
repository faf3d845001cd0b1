package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// A problem is an error of HTTP as RFC 9457 describes it. Its type is always
// about:blank, which says that the status tells all there is to branch on.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}

// Problem answers a request with an error, as application/problem+json.
func Problem(w http.ResponseWriter, status int, detail string) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	h.Del("Content-Length")
	w.WriteHeader(status)
	// The client may have gone.
	_ = json.NewEncoder(w).Encode(problem{"about:blank", http.StatusText(status), status, detail})
}

// unavailable is an error of who is asked, not of the question.
type unavailable struct{ error }

func (e unavailable) Unwrap() error { return e.error }

// Unavailable says of an error that it is not the asker's: asked again later, the same
// question may be answered.
func Unavailable(err error) error { return unavailable{err} }

// IsUnavailable reports whether that was said of err.
func IsUnavailable(err error) bool {
	_, ok := errors.AsType[unavailable](err)
	return ok
}

// policy is what a browser may do with whatever we serve: run and load what comes
// from here, as files, and nothing else; nobody may frame it.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// secure sets the headers that every answer has.
func secure(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		next.ServeHTTP(w, r)
	})
}

// Problems serves mux, and says what it has nothing for, or not by that method, as a
// [Problem].
func Problems(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, pattern := mux.Handler(r); pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		// The mux knows which of the two it is, and which methods there are.
		refusal := &refusal{header: http.Header{}, status: http.StatusNotFound}
		mux.ServeHTTP(refusal, r)
		detail := fmt.Sprintf("there is nothing at %.200q", r.URL.Path)
		if refusal.status == http.StatusMethodNotAllowed {
			w.Header()["Allow"] = refusal.header["Allow"]
			detail = fmt.Sprintf("%.20q: this is read-only", r.Method)
		}
		Problem(w, refusal.status, detail)
	})
}

// refusal takes an answer of which only the status and the header matter.
type refusal struct {
	header http.Header
	status int
}

func (r *refusal) Header() http.Header         { return r.header }
func (r *refusal) WriteHeader(status int)      { r.status = status }
func (r *refusal) Write(p []byte) (int, error) { return len(p), nil }
