#!/bin/sh
# Install what `make examples` needs and this machine lacks: Node.js with npm, and what builds C++ programs with gRPC.
# The packages are Debian's. Only root can install them. For anyone else, this names what is missing.
set -eu

missing=""
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "make examples: the examples in other languages need these Debian packages:$missing." \
            "Install them (sudo apt-get install$missing), or what your system has in their place." >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    for package in $missing; do # one by one: some nodejs packages bring npm, and refuse the package npm
        [ "$package" = npm ] && command -v npm >/dev/null && continue
        apt-get install -qq -y --no-install-recommends "$package"
    done
fi
