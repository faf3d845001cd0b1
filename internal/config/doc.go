// Package config reads what an operator writes: YAML files, environment and
// flags, in the order default < file < environment < flag.
//
// A misspelt key must never disarm a rule in silence, so files are read
// strictly: an unknown key, a repeated key or a value of the wrong kind is
// refused with file, line, column and the nearest valid word.
package config
