// Package docs holds the documentation. Its tests compare it with the code.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestGuard: every test is there that the pages name which say what holds, and by which.
func TestGuard(t *testing.T) {
	t.Run("guard", func(t *testing.T) { testNamed(t, "explanation/guard.md") })
	t.Run("security", func(t *testing.T) { testNamed(t, "../SECURITY.md") })
}

func testNamed(t *testing.T, path string) {
	page, err := os.ReadFile(path)
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
