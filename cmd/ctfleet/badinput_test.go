package main

import (
	"fmt"
	"strings"
	"testing"
)

// ruleOf is a rules file of one good rule and one more line.
func ruleOf(line string) string {
	return "rules:\n  - name: a\n    track: by_src\n    metric: new\n    count: 5\n    seconds: 10\n    " + line + "\n"
}

// TestRefused gives each program what it must refuse: one line says what and
// where, and the exit code tells usage (2) from failure (1).
func TestRefused(t *testing.T) {
	t.Parallel()
	twice := ruleOf("severity: info") + "  - name: a\n    track: by_dst\n    metric: new\n    count: 5\n    seconds: 10\n"
	negative := strings.Replace(ruleOf(""), "seconds: 10", "seconds: -10", 1)
	for _, c := range []struct {
		name    string
		file    string // content of the file called FILE in args
		command string
		code    int
		want    string // the line on standard error, FILE standing for the path
	}{
		{"config key", "name: fw-a\nlingr: 5ms\n", "producer --config FILE", 2, `producer: FILE:2: unknown key "lingr", did you mean "linger"?`},
		{"config value", "name: fw-a\nlinger: soon\n", "producer --config FILE", 2, `producer: FILE:2: --linger: expected duration but got "soon": time: invalid duration "soon"`},
		{"config name", "name: fw.a\n", "producer --config FILE", 2, `producer: FILE:1: --name: firewall name "fw.a": '.' at position 3 is not allowed (a-z, 0-9, and after the first character - and _)`},
		{"config of a command", "window: 7x\n", "ctfleet top --config FILE", 2, `ctfleet: --window: "7x" is no window that is kept, these are: 10s, 60s, and those of the rules`},
		{"config key of no command", "windw: 10s\n", "ctfleet top --config FILE", 2, `ctfleet: FILE:1: unknown key "windw", did you mean "window"?`},
		{"config missing", "", "producer --config /nosuch.yaml", 2, `producer: open /nosuch.yaml: no such file or directory`},

		{"rule key", ruleOf("secnds: 10"), "aggregator --rules FILE", 2, `aggregator: FILE:7:5: unknown key "secnds", did you mean "seconds"?`},
		{"rule key, checked", ruleOf("secnds: 10"), "ctfleet rules check FILE", 1, `ctfleet: FILE:7:5: unknown key "secnds", did you mean "seconds"?`},
		{"rule key, --check", ruleOf("secnds: 10"), "aggregator --check --rules FILE", 1, `aggregator: FILE:7:5: unknown key "secnds", did you mean "seconds"?`},
		{"rule key, up", ruleOf("secnds: 10"), "ctfleet up --rules FILE", 2, `ctfleet: FILE:7:5: unknown key "secnds", did you mean "seconds"?`},
		{"negative window", negative, "ctfleet rules check FILE", 1, `ctfleet: FILE:6:14: rule a: seconds: must be 1 to 3600, not -10`},
		{"two rules of one name", twice, "ctfleet rules check FILE", 1, `ctfleet: FILE:8:11: rule a: name: two rules have this name`},
		{"except", ruleOf("except: [198.51.100.0/33]"), "ctfleet rules check FILE", 1, `ctfleet: FILE:7:14: "198.51.100.0/33" is not a network such as 198.51.100.0/24`},
		{"except with host bits", ruleOf("except: 198.51.100.7/24"), "ctfleet rules check FILE", 1, `ctfleet: FILE:7:13: 198.51.100.7/24 has bits beyond its length, did you mean 198.51.100.0/24?`},
		{"rules missing", "", "ctfleet rules check /nosuch.yaml", 2, `ctfleet: <file>: stat /nosuch.yaml: no such file or directory`},

		{"policy key", "mode: enforce\npolcies: []\n", "responder --policy FILE", 2, `responder: FILE:2:1: unknown key "polcies", did you mean "policies"?`},
		{"policy mode", "mode: enforced\n", "responder --policy FILE", 2, `responder: FILE:1:7: mode: "enforced" is none of "observe", "approve", "enforce"`},
		{"policy mode, --check", "mode: enforced\n", "responder --check --policy FILE", 1, `responder: FILE:1:7: mode: "enforced" is none of "observe", "approve", "enforce"`},
		{"allowlist", "allowlist:\n  - 10.0.0.0/99\n", "responder --policy FILE", 2, `responder: FILE:2:5: "10.0.0.0/99" is not a network such as 198.51.100.0/24`},
		{"two policies for one rule", "policies:\n  - rule: a\n  - rule: a\n", "responder --policy FILE", 2, `responder: FILE:3:11: policies[1]: rule a has a policy already`},
		{"policy action", "policies:\n  - rule: a\n    action: shoot\n", "responder --policy FILE", 2, `responder: FILE:3:13: policy for a: action: "shoot" is none of "flush", "block", "flush+block", "relieve"`},

		{"name with a dot", "", "producer --name fw.a", 2, `producer: --name: firewall name "fw.a": '.' at position 3 is not allowed (a-z, 0-9, and after the first character - and _)`},
		{"reserved name", "", "producer --name fleet", 2, `producer: --name: firewall name "fleet" is reserved`},
		{"protect", "", "producer --protect 10.0.0.0/99", 2, `producer: --protect: "10.0.0.0/99" is neither an address nor a prefix`},
		{"protect with host bits", "", "producer --protect 10.0.0.1/8", 2, `producer: --protect: "10.0.0.1/8" has bits beyond its length, 10.0.0.0/8 is meant?`},
		{"ssh port", "", "producer --ssh-port 22,70000", 2, `producer: --ssh-port: expected a valid 16 bit uint but got "70000"`},
		{"netns", "", "producer --netns ctfleet-nosuch --check", 1, "producer: --netns: open network namespace \"ctfleet-nosuch\": open /run/netns/ctfleet-nosuch: no such file or directory; " +
			"`ip netns list` shows the names there are, `ip netns add ctfleet-nosuch` makes one; a path such as /proc/PID/ns/net works too"},
		{"trust", "", "producer --trust /nosuch.yaml", 2, `producer: --trust: open /nosuch.yaml: no such file or directory`},
		{"trust, up", "", "ctfleet up --trust /nosuch.yaml", 2, `ctfleet: --trust: open /nosuch.yaml: no such file or directory`},
		{"no keys", "", "aggregator --max-keys 0", 2, `aggregator: --max-keys: must be at least 1, is 0`},
		{"no keys, checked", "", "aggregator --max-keys 0 --check", 2, `aggregator: --max-keys: must be at least 1, is 0`},
		{"no keys, up", "", "ctfleet up --max-keys 0", 2, `ctfleet: up: --max-keys: must be at least 1, is 0`},
		{"no keys, replay", "", "ctfleet replay FILE --rules FILE --max-keys 0", 2, `ctfleet: --max-keys: must be at least 1, is 0`},
		{"replay without rules", "", "ctfleet replay FILE", 2, `ctfleet: missing flags: --rules=FILE`},
		{"webhook", "", "responder --webhook ftp://x", 2, `responder: --webhook: not an http or https URL`},
		{"webhook, checked", "", "responder --webhook ftp://x --check", 2, `responder: --webhook: not an http or https URL`},
		{"notify every", "", "responder --notify-every 1ms --check", 2, `responder: --notify-every: 1ms is less than 1s`},
		{"webhook, up", "", "ctfleet up --webhook ftp://x", 2, `ctfleet: up: --webhook: not an http or https URL`},
		{"linger", "", "producer --linger 0s", 2, `producer: --linger: 0s is not within 1ms to 2000ms`},
		{"flag", "", "producer --nmae fw-a", 2, `producer: unknown flag --nmae, did you mean "--name"?`},

		{"command", "", "ctfleet flsh", 2, `ctfleet: unexpected argument flsh, did you mean "flush"?`},
		{"no command", "", "ctfleet", 2, `ctfleet: expected one of "demo", "up", "top", "observe", "firewalls", ...`},
		{"window", "", "ctfleet top --window soon", 2, `ctfleet: --window: "soon" is no window that is kept, these are: 10s, 60s, and those of the rules`},
		{"empty window", "", "ctfleet top --window=", 2, `ctfleet: --window: "" is no window that is kept, these are: 10s, 60s, and those of the rules`},
		{"window below zero", "", "ctfleet top --window=-10s", 2, `ctfleet: --window: "-10s" is no window that is kept, these are: 10s, 60s, and those of the rules`},
		{"metric", "", "ctfleet top --metric newest", 2, `ctfleet: --metric must be one of "new","active","unreplied" but got "newest"`},
		{"flush of no address", "", "ctfleet flush everybody -y", 2, `ctfleet: "everybody" is neither an address nor a prefix`},
		{"flush with host bits", "", "ctfleet flush 198.18.0.1/24 -y", 2, `ctfleet: "198.18.0.1/24" has bits beyond its length, 198.18.0.0/24 is meant?`},
		{"flush on a bad name", "", "ctfleet flush 198.18.0.1 -y --firewall FW", 2, `ctfleet: firewall name "FW": 'F' at position 1 is not allowed (a-z, 0-9, and after the first character - and _)`},
		{"flush towards nobody", "", "ctfleet flush 198.18.0.1 -y --towards x", 2, `ctfleet: --towards: "x" is neither an address nor a prefix`},
		{"flush of fewer than none", "", "ctfleet flush 198.18.0.1 -y --most=-1", 2, `ctfleet: --most: expected a valid 64 bit uint but got "-1"`},
		{"block without an end", "", "ctfleet block add 198.18.0.1 -y", 2, `ctfleet: missing flags: --for=DURATION`},
		{"block for too long", "", "ctfleet block add 198.18.0.1 -y --for 25h", 2, `ctfleet: --for: 25h0m0s is not within 1s to 24h: what is to last longer is a rule`},
		{"block for no time", "", "ctfleet block add 198.18.0.1 -y --for 0.5s", 2, `ctfleet: --for: 500ms is not within 1s to 24h: what is to last longer is a rule`},
		{"block of no address", "", "ctfleet block add everybody -y --for 1m", 2, `ctfleet: "everybody" is neither an address nor a prefix`},
		{"block unasked", "", "ctfleet block delete 198.18.0.1", 2, `ctfleet: standard input is no terminal to ask at: give --yes, or --dry-run`},
		{"block list of a bad name", "", "ctfleet block list --firewall FW", 2, `ctfleet: firewall name "FW": 'F' at position 1 is not allowed (a-z, 0-9, and after the first character - and _)`},
		{"block set", "", "producer --allow-block --block-set blocked4", 2, `producer: --block-set: set "blocked4": want FAMILY/TABLE/SET, such as inet/filter/blocked4`},
		{"block set for nothing", "", "producer --block-set inet/filter/blocked4", 2, `producer: --block-set and --clear-blocks are nothing without --allow-block`},
		{"events age", "", "ctfleet bootstrap --events-age 1m", 2, `ctfleet: --events-age: 1m0s is less than 15m`},
		{"audit address", "", "ctfleet audit list --address x", 2, `ctfleet: --address: "x" is neither an address nor a prefix`},
		{"duration", "", "ctfleet demo --duration=-1s", 2, `ctfleet: --duration: must not be negative, is -1s`},
		{"listen for everybody", "", "aggregator --listen 0.0.0.0:0", 2, `aggregator: --listen 0.0.0.0:0: whoever reaches it could read everything: give --http-token-file, or a loopback address`},
		{"listen for everybody, checked", "", "aggregator --listen 0.0.0.0:0 --check", 1, `aggregator: --listen 0.0.0.0:0: whoever reaches it could read everything: give --http-token-file, or a loopback address`},
		{"listen for everybody, up", "", "ctfleet up --listen [::]:0", 2, `ctfleet: --listen [::]:0: whoever reaches it could read everything: give --http-token-file, or a loopback address`},
		{"listen for everybody, demo", "", "ctfleet demo --listen :0", 2, `ctfleet: --listen :0: whoever reaches it could read everything: give --http-token-file, or a loopback address`},
		{"token", "short", "aggregator --http-token-file FILE", 2, `aggregator: --http-token-file: FILE: a token has 16 to 4096 characters; openssl rand -hex 32 makes one`},
		{"listen", "", "ctfleet demo --listen nosuchport", 1, `ctfleet: listen on nosuchport: listen tcp: address nosuchport: missing port in address`},
		{"nats", "", "ctfleet top --nats-url nats://user:secret@127.0.0.1:1", 1, `ctfleet: connect to NATS at nats://127.0.0.1:1: nats: no servers available for connection`},
		{"nats, no file", "", "ctfleet top --nats-creds /nosuch.creds", 1, `ctfleet: --nats-creds: stat /nosuch.creds: no such file or directory`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := file(t, "file.yaml", c.file)
			words := strings.Fields(strings.ReplaceAll(c.command, "FILE", path))
			r := call{}.run(t, words[0], words[1:]...)
			got := strings.ReplaceAll(r.stderr, path, "FILE")
			// What was mistyped on the command line is followed by where to look.
			line, rest, _ := strings.Cut(got, "\n")
			hint := fmt.Sprintf("Run '%s --help' for the flags.\n", words[0])
			if line != c.want || rest != "" && rest != hint || r.code != c.code || r.stdout != "" {
				t.Errorf("exit code %d, want %d; printed %q;\ngot  %s\nwant %s", r.code, c.code, r.stdout, got, c.want)
			}
		})
	}
}

// TestSecretsAreNotShown: the user part of a URL is for the server only.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	secret := call{env: []string{"NATS_URL=nats://user:secret@127.0.0.1:1"}}
	for _, args := range []string{"ctfleet top", "ctfleet top --help", "producer --help", "aggregator --check", "responder --check", "ctfleet bootstrap --wait 1s"} {
		words := strings.Fields(args)
		if r := secret.run(t, words[0], words[1:]...); strings.Contains(r.stdout+r.stderr, "secret") {
			t.Errorf("%s shows the password:\n%s%s", args, r.stdout, r.stderr)
		}
	}
}
