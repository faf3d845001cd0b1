package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// readyCmd is the health check of a container that has nothing else to ask with.
type readyCmd struct {
	URL string `arg:"" help:"Of a daemon's HTTP, such as http://127.0.0.1:8080."`
}

func (c *readyCmd) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/readyz", nil)
	if err != nil {
		return &exitError{2, err}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, printable(string(body)))
	}
	fmt.Print(printable(string(body)))
	return nil
}
