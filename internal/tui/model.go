package tui

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// model is all that the screen depends on. Its clock is that of the messages.
type model struct {
	ctx           context.Context
	cfg           Config
	now           time.Time
	width, height int
	light         bool // the background

	// What is asked for.
	query   events.TopQuery
	subject *events.AddressQuery // nil: the page of the rows
	round   int
	waiting bool
	giveUp  context.CancelFunc // of the round that runs; never nil
	due     time.Time          // of the next one
	paused  bool

	// What was answered, and since when nothing was.
	answered time.Time // the zero time: nothing yet
	err      error
	failed   time.Time
	fleet    []events.FirewallStatus
	alerts   []events.Alert
	top      *events.TopReply
	shown    events.TopQuery // what top answers
	windows  []int           // that are kept, in seconds
	address  *events.AddressReply
	losses   map[string]loss

	// Where the person is.
	rows     []events.TopRow // of top, in the order that is shown
	byKey    bool
	reversed bool
	chosen   string // the key that the bar stays on; "": the first row, whatever it is
	bar      int    // its row
	first    int    // row on the screen
	scroll   int    // of the page of an address, or of help
	help     bool
	typing   bool
	typed    string
	wrong    string // what the last key could not do
}

// maxPaste is how many bytes may be pasted: more than a prefix has.
const maxPaste = 64

func newModel(ctx context.Context, cfg Config, now time.Time) *model {
	cfg.Query.V = events.MessageVersion // as it will be sent, so that it compares
	return &model{
		ctx: ctx, cfg: cfg, now: now, width: 80, height: 24, query: cfg.Query, shown: cfg.Query,
		giveUp: func() {}, losses: map[string]loss{},
	}
}

// tick is the time, every second or more often.
type tick time.Time

func (m *model) tick() tea.Cmd {
	return tea.Tick(min(m.cfg.Every, time.Second), func(t time.Time) tea.Msg { return tick(t) })
}

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return tea.Batch(m.ask(), m.tick(), tea.RequestBackgroundColor) }

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.BackgroundColorMsg:
		m.light = !msg.IsDark()
	case tick:
		m.now = later(m.now, time.Time(msg))
		if m.paused || m.waiting || m.now.Before(m.due) {
			return m, m.tick()
		}
		return m, tea.Batch(m.ask(), m.tick())
	case *answer:
		m.take(msg)
	case tea.PasteMsg:
		if m.typing {
			// What is copied often ends with its line. What is longer is no prefix.
			if text := clean(strings.TrimSpace(msg.Content)); len(text) <= maxPaste {
				m.typed, m.wrong = m.typed+text, ""
			}
		}
	case tea.KeyPressMsg:
		return m, m.press(msg)
	}
	return m, nil
}

// arrange puts the rows into the order that is asked for, and the bar where its key
// is. Where that is gone the bar stays at its place, and returns with the key.
func (m *model) arrange() tea.Cmd {
	if m.top == nil {
		return nil
	}
	m.rows = slices.Clone(m.top.Rows)
	slices.SortStableFunc(m.rows, func(a, b events.TopRow) int {
		order := cmp.Or(cmp.Compare(b.Value, a.Value), compareKeys(a.Key, b.Key))
		if m.byKey {
			order = compareKeys(a.Key, b.Key)
		}
		if m.reversed {
			return -order
		}
		return order
	})
	if m.chosen == "" {
		m.bar = 0
	} else if i := slices.IndexFunc(m.rows, func(r events.TopRow) bool { return r.Key == m.chosen }); i >= 0 {
		m.bar = i
	}
	m.bar = max(min(m.bar, len(m.rows)-1), 0)
	return nil
}

// View implements tea.Model.
func (m *model) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	return v
}
