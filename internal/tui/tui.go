package tui

import (
	"context"
	"errors"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Ask puts a question of one kind (events.QueryTop and so on) to the centre. It
// returns when the answer is there, or ctx ends. Its errors are shown as they are.
type Ask func(ctx context.Context, kind string, question, answer events.Message) error

// Config says what is shown first, and how often it is asked for.
type Config struct {
	Ask   Ask
	Query events.TopQuery // Limit: how many rows there are to scroll through
	Every time.Duration
}

// Run shows the fleet on the terminal that standard input and output are, until
// the person there has seen enough or ctx ends, which is no error.
func Run(ctx context.Context, cfg Config) error {
	// Signals end ctx. The terminal is put back into order before Run returns.
	_, err := tea.NewProgram(newModel(ctx, cfg, time.Now()), tea.WithContext(ctx), tea.WithoutSignalHandler()).Run()
	if errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil {
		return nil
	}
	return err
}
