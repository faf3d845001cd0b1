package docs

import (
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	link    = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	fenced  = regexp.MustCompile("(?ms)^```.*?^```$")
	heading = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)
	// What is not left of a heading in the name that it can be linked by.
	dropped = regexp.MustCompile(`[^\p{L}\p{N}\s_-]`)
)

// TestLinks: every relative link of every page leads to a file or directory that is
// here, and to a heading that it has.
func TestLinks(t *testing.T) {
	pages := map[string]string{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == ".git" || d.Name() == "testdata" || d.Name() == "bin" || d.Name() == "dist"):
			return filepath.SkipDir
		case filepath.Ext(path) == ".md":
			text, err := os.ReadFile(path)
			pages[path] = fenced.ReplaceAllString(string(text), "")
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for path, text := range pages {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			u, err := url.Parse(m[1])
			if err != nil {
				t.Errorf("%s: %q: %v", path, m[1], err)
				continue
			}
			if u.Scheme != "" {
				continue
			}
			seen++
			to := path
			if u.Path != "" {
				to = filepath.Join(filepath.Dir(path), u.Path)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
				continue
			}
			if u.Fragment != "" && !hasHeading(pages[to], u.Fragment) {
				t.Errorf("%s links to %s: %s has no such heading", path, m[1], to)
			}
		}
	}
	if seen < 100 {
		t.Errorf("%d links in %d pages: is this test looking at them?", seen, len(pages))
	}

	// A page that the index leaves out is one that nobody finds.
	const home = "../docs/"
	for path := range pages {
		rel, here := strings.CutPrefix(path, home)
		if !here || rel == "README.md" || strings.HasPrefix(rel, "adr/") {
			continue
		}
		if !strings.Contains(pages[home+"README.md"], "("+rel+")") {
			t.Errorf("docs/README.md does not list %s", rel)
		}
	}
}

// hasHeading says whether a page has the heading that a fragment names, as the name is
// made where pages are rendered: lower case, without punctuation, dashes for spaces.
func hasHeading(page, fragment string) bool {
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		if strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-") == fragment {
			return true
		}
	}
	return false
}
