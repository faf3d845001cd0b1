// Package observe is how events of the fleet are chosen and shown, to the operator's
// tool and over HTTP alike:
//
//	filter.go  which events are wanted
//	event.go   what is shown of one
package observe
