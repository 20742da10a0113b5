//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"servicetraceroute/internal/lab/link"
	"servicetraceroute/internal/scenario"
)

// SetLink changes a link while traffic flows. Costs and state change as a routing
// protocol would have it: routes are worked out again, and the nodes replace
// those that differ; the change takes effect node by node within a few
// milliseconds. A link that is down still joins its two ends. Delay, jitter,
// rate, queue, loss and what is rewritten can change only where the link had one of
// them from the start; names, prefixes and the MTU cannot change
// (errors.ErrUnsupported). A new SeqShift breaks the connections that are open.
func (l *Lab) SetLink(ctx context.Context, name string, change func(*scenario.Link)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.setLink(ctx, name, change); err != nil {
		return fmt.Errorf("lab: link %q: %w", name, err)
	}
	return nil
}

func (l *Lab) setLink(ctx context.Context, name string, change func(*scenario.Link)) error {
	i := linkIndex(l.layout.Network, name)
	if i < 0 {
		return errors.New("no such link")
	}
	next := l.layout.Network
	next.Links = slices.Clone(next.Links)
	was := next.Links[i]
	change(&next.Links[i])
	if err := changeable(was, next.Links[i], l.links[name] != nil); err != nil {
		return err
	}
	layout, err := next.Layout()
	if err != nil {
		return err
	}
	var all parallel
	for name, n := range l.nodes {
		c := diffRoutes(planRoutes(l.layout.Nodes[name]), planRoutes(layout.Nodes[name]))
		if !c.empty() {
			all.Go(func() error { return n.Call(ctx, "lab/routes", c, nil) })
		}
	}
	if n := l.links[name]; n != nil {
		if is := l.impairment(layout, name); is != l.impairment(l.layout, name) {
			all.Go(func() error { return link.Set(ctx, n, is) })
		}
	}
	if err := all.Wait(); err != nil {
		return err
	}
	l.layout = layout
	return nil
}

// changeable reports an error when something changed that is fixed once the lab runs.
func changeable(was, is scenario.Link, impaired bool) error {
	if is.Impaired() && !impaired {
		return fmt.Errorf("it began as a plain wire and stays one: %w", errors.ErrUnsupported)
	}
	was.CostAB, was.CostBA, was.Down = is.CostAB, is.CostBA, is.Down
	was.Delay, was.Jitter, was.Rate, was.Loss, was.Queue = is.Delay, is.Jitter, is.Rate, is.Loss, is.Queue
	was.SeqShift, was.QuotesUntranslated, was.ShortQuotes = is.SeqShift, is.QuotesUntranslated, is.ShortQuotes
	if was != is {
		return fmt.Errorf("names, prefixes and the MTU are fixed: %w", errors.ErrUnsupported)
	}
	return nil
}
