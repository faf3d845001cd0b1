// Package bus is NATS: connections, the embedded server, streams, publishing
// with collected acknowledgements, and services. It is the only place that
// knows JetStream; everything else sees subjects and bytes.
//
// Delivery is at least once, never exactly once. Every message that must not
// be counted twice carries an id; the server drops repetitions within a short
// window and consumers dedupe by themselves.
package bus
