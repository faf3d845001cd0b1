package bus

// Servers are the addresses of the servers that f names, to be shown: without
// the user parts.
func (f Flags) Servers() string { return hide("", f.NATSURL) }
