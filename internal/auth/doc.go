// Package auth makes what the parties of a fleet prove themselves by: keys, certificates,
// and what the NATS server is told of them.
//
//	Init          a directory for a whole fleet: dir.go
//	AddFirewall   one more firewall, or one less
//	Role          who may say and hear what on the bus: permissions.go
//	NewKey        a key to sign commands with, and the file that says whom to trust: key.go
//
// A key on the bus (an nkey) says who is connected; a certificate says who may connect at all.
// Neither lets anybody delete anything: commands are signed, by keys that the bus never sees
// (package seal).
package auth
