// Package docs holds the documentation. Its tests compare it with the code.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestGuard: every test that explanation/guard.md names is there.
func TestGuard(t *testing.T) {
	page, err := os.ReadFile("explanation/guard.md")
	if err != nil {
		t.Fatal(err)
	}
	claims := regexp.MustCompile("((?:`Test[A-Za-z0-9]+`,? )+)\\(([a-z/]+)\\)").FindAllStringSubmatch(string(page), -1)
	names := regexp.MustCompile("Test[A-Za-z0-9]+")
	found := 0
	for _, claim := range claims {
		files, err := filepath.Glob(filepath.Join("..", claim[2], "*_test.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s has no tests: %v", claim[2], err)
		}
		var code strings.Builder
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			code.Write(text)
		}
		for _, name := range names.FindAllString(claim[1], -1) {
			found++
			if !strings.Contains(code.String(), "func "+name+"(t *testing.T)") {
				t.Errorf("%s has no %s", claim[2], name)
			}
		}
	}
	if all := len(names.FindAllString(string(page), -1)); found != all || all == 0 {
		t.Errorf("%d tests are named, %d of them with their package", all, found)
	}
}
