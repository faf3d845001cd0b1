// Package reference makes those parts of docs/reference that are made from the code, and has a
// test fail where they are not what the code says any more. The tests that use it are beside
// what they describe; each writes its part anew with -update.
package reference
