package main

import (
	"fmt"

	"github.com/ctfleet/ctfleet/internal/auth"
	"github.com/ctfleet/ctfleet/internal/seal"
)

type authCmd struct {
	Key authKeyCmd `cmd:"" help:"Make a key to sign commands with, and add it to a trust file."`
}

type authKeyCmd struct {
	File  string   `arg:"" type:"path" help:"Where the seed goes: keep it secret. An existing file is not overwritten."`
	Trust string   `type:"path" required:"" placeholder:"FILE" help:"The trust file that the public key is added to: give it to each firewall and responder."`
	Name  string   `required:"" placeholder:"NAME" help:"Whose key it is, as the audit is to show it."`
	Role  string   `enum:"operator,responder" default:"operator" help:"operator or responder: what a responder claims must hold on the firewall (${default})."`
	Verbs []string `placeholder:"VERB" help:"What the key may be used for: flush, block, unblock, allowlist, approve, guard (default: all of them; of a responder the first three)."`
}

func (c *authKeyCmd) Run() error {
	if len(c.Verbs) == 0 {
		c.Verbs = auth.DefaultVerbs(c.Role)
	}
	p := seal.Party{Name: c.Name, Role: c.Role, Verbs: c.Verbs}
	if err := auth.NewKey(c.File, c.Trust, &p); err != nil {
		return err
	}
	fmt.Printf("%s: the seed, for --sign-key\n%s: trusts %s now, as %s\n", c.File, c.Trust, p.Key, p.Name)
	return nil
}
