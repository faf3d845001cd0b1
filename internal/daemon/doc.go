// Package daemon is what all long-running programs share: common flags,
// signals, logging, metrics and health over HTTP, and the version.
package daemon
