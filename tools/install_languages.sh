#!/bin/sh
# Install what `make examples` needs and this machine lacks: Node.js with npm, and what builds C++ programs with gRPC.
# The packages are Debian's. Only root can install them. For anyone else, this names what is missing.
set -eu

missing=""
need() { # need PACKAGE COMMAND...: the package is missing if the command fails
    package=$1
    shift
    "$@" >/dev/null 2>&1 || missing="$missing $package"
}

need nodejs command -v node
need npm command -v npm
need g++ command -v g++
need pkg-config command -v pkg-config
need protobuf-compiler command -v protoc
need protobuf-compiler-grpc command -v grpc_cpp_plugin
need libprotobuf-dev pkg-config --exists protobuf
need libgrpc++-dev pkg-config --exists grpc++
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "make examples: the examples in other languages need these Debian packages:$missing." \
        "Install them (sudo apt-get install$missing), or what your system has in their place." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
for package in $missing; do
    # Some nodejs packages bring npm, and conflict with the package npm.
    if [ "$package" = npm ] && command -v npm >/dev/null; then continue; fi
    apt-get install -qq -y --no-install-recommends "$package"
done
