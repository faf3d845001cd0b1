// Package rule knows thresholds and the life of an alert. It is pure: values go in,
// transitions come out. It has no clock and knows no bus, so the same values at the
// same times give the same alerts, with the same ids.
//
//	idle ──over──▶ pending ──over for "for"──▶ firing ──under clear_ratio × count for "recover"──▶ idle
//	                  │                          ▲ │
//	                  └─under──▶ idle            │ └─ update, when the value changed a lot
//	             max_firing reached: held ───────┘
//
// Rules come from a file ([File], read by package config) and are judged by an
// [Engine]. The caller knows what is counted; the engine knows values of a
// [Subject] only. It calls [Engine.Observe] for what a batch brought up, so that an
// alert fires when the batch that crosses the threshold is counted, and
// [Engine.Tick] from time to time, so that time passes also where nothing happens.
//
// A value that is not known neither fires nor resolves anything.
//
// An Engine belongs to one goroutine.
package rule
