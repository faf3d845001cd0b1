package main

import (
	"flag"
	"testing"

	"github.com/ctfleet/ctfleet/internal/reference"
)

var update = flag.Bool("update", false, "write docs/reference/producer.md anew")

// TestReference: the page says which flags there are.
func TestReference(t *testing.T) {
	var f flags
	reference.Program(t, *update, "../../docs/reference/producer.md", "producer", &f)
}
