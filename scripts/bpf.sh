#!/usr/bin/env bash
# Compiles the eBPF programs. Objects differ from compiler to compiler: this one is pinned.
set -euo pipefail
cd "$(dirname "$0")/../internal/capture/bpf"
clang-14 -ffile-prefix-map="$PWD=." -O2 -g -Wall -Werror -target bpf -mcpu=v3 -I"/usr/include/$(uname -m)-linux-gnu" -c tap.c -o tap.o
llvm-strip-14 -g tap.o
