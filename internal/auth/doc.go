// Package auth makes what the parties of a fleet prove themselves by: keys, and
// the file that says which of them to trust.
package auth
