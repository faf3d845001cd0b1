package main

// What `--help` teaches beside the flags: the next thing to type.

func (*cli) Help() string {
	return `Begin here:

    ctfleet demo                    see it work, in a lab on this machine
    sudo ctfleet up                 watch this host
    ctfleet top                     who opens flows fastest, in the fleet at --nats-url

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by a guard.`
}

func (*demoCmd) Help() string {
	return `Builds three firewalls with real connection tables in network namespaces (in an unprivileged user namespace when not root), sends ordinary traffic through them and, after a few seconds, an attack through two. Nothing leaves this machine.

    ctfleet demo
    ctfleet demo --duration 20s -o json     exit code 0 only if all went as it should`
}

func (*upCmd) Help() string {
	return `Needs CAP_NET_ADMIN. Nothing is deleted unless --allow-flush is given and a policy or an operator asks for it.

    sudo ctfleet up --rules rules.yaml
    sudo ctfleet up --allow-flush --rules rules.yaml --policy policy.yaml`
}

func (*topCmd) Help() string {
	return `At a terminal it is a view to press keys in, which begins with what the flags say:

    s d Tab     by source, by destination, the other one
    m           the next metric: new, active, unreplied
    w W         the next of the windows that are kept, the one before
    f F         one firewall after the other, then the fleet; backwards
    /           only addresses within a prefix
    h           hide what is allowlisted, or show it again
    o r         by value or by address; the order turned around
    ↑ ↓ Enter   choose an address; all that is known of it. Esc goes back
    p ? q       pause; what the keys do; quit

Elsewhere it prints, again and again or --once.

    ctfleet top                                     the fleet, refreshed every second
    ctfleet top --by dst --window 60s               who is opened to
    ctfleet top --metric active --firewall fw-a     who holds the most of one table
    ctfleet top --at '2026-11-25 14:05'             the past, where the aggregator keeps a history
    ctfleet top --once -o json                      for scripts`
}

func (*observeCmd) Help() string {
	return `Each event once, a line each, by the clock of the bus. What is missing, and that more comes than can be printed, is said on standard error. Ctrl-C ends it.

    ctfleet observe --ip 203.0.113.7                    live
    ctfleet observe --since 5m --to-ip 198.51.100.0/24 --protocol tcp --port 22
    ctfleet observe --last 100 --type destroy -o json
    ctfleet observe --since 15m -o raw > today.rec      a recording, for ctfleet replay`
}

func (*replayCmd) Help() string {
	return `Runs rules over what was recorded, at full speed and without a bus, and prints what would have fired, when and why. Rules of tables are not judged: a recording does not say how full they are. The exit code is 0 whether anything fired or not.

    ctfleet observe --since 15m -o raw > today.rec
    ctfleet replay today.rec --rules new.yaml
    ctfleet replay today.rec --rules new.yaml -o json`
}

func (*alertsCmd) Help() string {
	return `    ctfleet alerts                          what is firing
    ctfleet alerts watch --since 1h         what fired and resolved, and what comes
    ctfleet alerts watch -o json            one JSON object per line`
}

func (*flushCmd) Help() string {
	return `Each firewall decides by itself: it needs --allow-flush and a key that it trusts (ctfleet auth key), and refuses its own addresses, its gateways, resolvers and NATS server, who is connected to its SSH port, what --protect lists, and prefixes wider than /24 or /64. Zero entries deleted is success. With tcp_loose=1 a routed TCP connection is back with its next packet.

    ctfleet flush 203.0.113.7 --dry-run
    ctfleet flush 203.0.113.7 --sign-key alice.nk --reason 'ticket 4711' --wait
    ctfleet flush 203.0.113.0/24 --towards 198.51.100.9 --most 5000 --sign-key alice.nk
    CTFLEET_SIGN_KEY=alice.nk ctfleet flush 2001:db8:7::/64 --by either --firewall fw-a --yes -o json

What must not come back is blocked: ctfleet block add --flush.

Exit code 1 if a firewall failed or did not answer, else 3 if one refused, else 0.`
}

func (*blockCmd) Help() string {
	return `Packets from and to a blocked address are dropped before connection tracking sees them, on each firewall that runs with --allow-block. Each block has an end, which the firewall's kernel keeps: it holds while no producer runs, and after one was started again.

    ctfleet block add 203.0.113.7 --for 10m --flush --sign-key alice.nk --reason 'ticket 4711'
    ctfleet block list
    ctfleet block delete 203.0.113.7 --sign-key alice.nk`
}

func (*blockAddCmd) Help() string {
	return `Each firewall decides by itself: it needs --allow-block and a key that it trusts for block, and with --flush also --allow-flush and flush. It refuses whom a flush would spare, and since a block cannot go round anybody, a prefix that one of them lies within; link-local and multicast addresses; prefixes wider than /24 or /64; and conntrack zones, which packets have not reached when they are dropped.

    ctfleet block add 203.0.113.7 --for 10m --dry-run
    ctfleet block add 203.0.113.7 --for 10m --flush --sign-key alice.nk
    CTFLEET_SIGN_KEY=alice.nk ctfleet block add 2001:db8:7::/64 --for 24h --firewall fw-a --yes -o json

Exit code 1 if a firewall failed or did not answer, else 3 if one refused, else 0.`
}

func (*blockDeleteCmd) Help() string {
	return `Ends the block of this prefix and no other: what a wider one covers stays blocked, and the receipt says so. To end one that is not there is success.

    ctfleet block delete 203.0.113.7 --sign-key alice.nk`
}

func (*blockListCmd) Help() string {
	return `Asks each firewall for what it has blocked: its own sets, not other rules.

    ctfleet block list --firewall fw-a
    ctfleet block list -o json

Exit code 1 if a firewall did not answer.`
}

func (*allowlistCmd) Help() string {
	return `In force on every responder and firewall within a second. A firewall that has not read it refuses to delete. An entry that is not signed by a key trusted for it only lists its prefix, whatever it says.

    ctfleet allowlist add 10.0.0.0/8 --for 1h --comment 'backup run' --sign-key alice.nk
    ctfleet allowlist add 10.1.2.3 --except --sign-key alice.nk     this one may be acted upon all the same
    ctfleet allowlist check 10.9.9.9
    ctfleet allowlist delete 10.0.0.0/8 --sign-key alice.nk`
}

func (*approvalsCmd) Help() string {
	return `A policy in mode approve proposes what it would do, and waits: what nobody approves in time is not done.

    ctfleet approvals
    ctfleet approvals approve 3f2a --sign-key alice.nk --reason 'ticket 4711'`
}

func (*guardCmd) Help() string {
	return `When a budget is spent the circuit opens: whatever their modes say, policies only observe until somebody has looked and closes it. Firewalls carry out what operators sign all the same.

    ctfleet guard status
    ctfleet guard close --sign-key alice.nk --reason 'the rule is mended'
    ctfleet guard open --sign-key alice.nk      an emergency stop`
}

func (*auditListCmd) Help() string {
	return `    ctfleet audit list --since 24h --address 203.0.113.7`
}

func (*rulesCheckCmd) Help() string {
	return `    ctfleet rules check rules.yaml && systemctl restart aggregator`
}

func (*authKeyCmd) Help() string {
	return `    ctfleet auth key alice.nk --name alice --trust trust.yaml
    ctfleet auth key responder.nk --name responder --role responder --trust trust.yaml
    producer --allow-flush --trust trust.yaml
    responder --policy policy.yaml --sign-key responder.nk
    ctfleet flush 203.0.113.7 --sign-key alice.nk

A producer reads its trust file again on SIGHUP.`
}

func (*decodeCmd) Help() string {
	return `    nats sub --translate 'ctfleet decode' 'ct.v1.alerts.>'`
}

func (*bootstrapCmd) Help() string {
	return `Creates what is missing and brings the limits of what is there up to date (lower ones drop the oldest messages). Safe to run at any time.

    ctfleet bootstrap --nats-url nats://nats.example:4222 --wait 30s`
}
