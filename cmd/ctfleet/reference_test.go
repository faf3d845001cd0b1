package main

import (
	"testing"

	"github.com/ctfleet/ctfleet/internal/reference"
)

// TestReference: the page says which commands and flags there are.
func TestReference(t *testing.T) {
	var c cli
	reference.Program(t, *update, "../../docs/reference/ctfleet.md", "ctfleet", &c)
}
