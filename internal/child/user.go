package child

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// User is whom a command runs as.
type User struct {
	UID, GID   uint32
	Groups     []uint32
	Name, Home string // empty when there is no such entry
}

// LookupUser finds a user by name or number.
func LookupUser(text string) (*User, error) {
	u, err := user.Lookup(text)
	if err != nil {
		if _, number := strconv.ParseUint(text, 10, 32); number != nil {
			return nil, fmt.Errorf("child: %w", err)
		}
		if u, err = user.LookupId(text); err != nil {
			return nil, fmt.Errorf("child: %w", err)
		}
	}
	return userOf(u)
}

// UserOf is a user by number, who need not have an entry.
func UserOf(uid, gid int) *User {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		if found, err := userOf(u); err == nil {
			found.GID = uint32(gid)
			return found
		}
	}
	return &User{UID: uint32(uid), GID: uint32(gid), Groups: []uint32{uint32(gid)}}
}

func userOf(u *user.User) (*User, error) {
	uid, err := number(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := number(u.Gid)
	if err != nil {
		return nil, err
	}
	out := &User{UID: uid, GID: gid, Groups: []uint32{gid}, Name: u.Username, Home: u.HomeDir}
	// Without their list the user has at least the group of the entry.
	ids, _ := u.GroupIds()
	for _, id := range ids {
		if g, err := number(id); err == nil && !slices.Contains(out.Groups, g) {
			out.Groups = append(out.Groups, g)
		}
	}
	return out, nil
}

func number(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("child: id %q of a user: %w", text, err)
	}
	return uint32(n), nil
}

// environment is this process's, with what tells the user's name and home put
// right and without the traces of sudo, which the user does not run under.
func (u *User) environment() []string {
	env := os.Environ()
	if u == nil {
		return env
	}
	env = slices.DeleteFunc(env, func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		switch name {
		case "SUDO_USER", "SUDO_UID", "SUDO_GID", "SUDO_COMMAND", "SUDO_HOME":
			return true
		case "USER", "LOGNAME":
			return u.Name != ""
		case "HOME":
			return u.Home != ""
		}
		return false
	})
	if u.Name != "" {
		env = append(env, "USER="+u.Name, "LOGNAME="+u.Name)
	}
	if u.Home != "" {
		env = append(env, "HOME="+u.Home)
	}
	return env
}
