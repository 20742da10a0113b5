// Package catalogue knows services by name: which domains, patterns, prefixes and
// ports belong to each. One catalogue is in the binary (services.yaml); users' files
// of the same form are merged over it, and the service list of the tool of the paper
// ("Service traceroute", PAM 2019) can be imported.
//
// What is read is checked here, so whoever compiles a Service into matchers finds
// nothing wrong with it. Matching itself, and the resolution of names, are not done
// here; nor does this package open files. The command line and the library call it.
package catalogue
