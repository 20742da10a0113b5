package firewall

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"servicetraceroute/internal/lab/labtest"
	"servicetraceroute/internal/privilege"
)

const childEnv = "SERVICE_TRACEROUTE_FIREWALL_CHILD"

// TestMain plays the child of some tests, or lets tests have namespaces where only
// users' own are allowed.
func TestMain(m *testing.M) {
	play := os.Getenv(childEnv)
	if play == "" {
		labtest.Main(m)
	}
	if err := child(play); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("done")
	if play == "hold" {
		select {} // until killed
	}
}

// child makes a rule and then gives up privileges, or keeps what Add takes.
func child(play string) error {
	r, err := Open()
	if err != nil {
		return err
	}
	if play == "late" {
		if err := privilege.Drop(); err != nil {
			return err
		}
		if err := r.Ready(); !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("made without privileges: %v", err)
		}
		return nil
	}
	if err := r.Ready(); err != nil {
		return err
	}
	switch play {
	case "drop":
		if err := privilege.Drop(); err != nil {
			return err
		}
		if err := r.Add(udp(false, 1)); !errors.Is(err, os.ErrPermission) {
			return fmt.Errorf("added without privileges: %v", err)
		}
		return nil
	case "keep":
		if err := privilege.Drop(privilege.NetAdmin); err != nil {
			return err
		}
	}
	if err := r.Add(udp(false, 1), udp(true, 1)); err != nil {
		return err
	}
	_, err = r.Dropped()
	return err
}
