module servicetraceroute

go 1.26
