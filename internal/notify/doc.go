// Package notify tells the outside world of alerts: an Alertmanager (its API,
// version 2), or whoever takes JSON at a URL.
//
// What fires is told at once, again each minute while it fires, and once more when
// it is resolved. Nothing is given up while the other side is away: alerts are kept
// by id, so what waits is the latest of each. With each repetition goes a heartbeat,
// an alert that always fires: whoever misses it knows that nobody watches any more.
package notify
