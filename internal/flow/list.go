package flow

// list is flows in the order of their use.
type list struct {
	newest, oldest *Flow
	len            int
}

func (l *list) touch(f *Flow) {
	if l.newest != f {
		l.unlink(f)
		l.push(f)
	}
}

func (l *list) push(f *Flow) {
	f.older, f.newer = l.newest, nil
	if l.newest != nil {
		l.newest.newer = f
	}
	l.newest = f
	if l.oldest == nil {
		l.oldest = f
	}
	l.len++
}

func (l *list) unlink(f *Flow) {
	if f.newer != nil {
		f.newer.older = f.older
	} else {
		l.newest = f.older
	}
	if f.older != nil {
		f.older.newer = f.newer
	} else {
		l.oldest = f.newer
	}
	f.older, f.newer = nil, nil
	l.len--
}
