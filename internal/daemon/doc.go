// Package daemon is what all long-running programs share: common flags,
// signals, logging, the version; and what they serve over HTTP: metrics, health,
// errors as problems, to whom a token lets in.
package daemon
