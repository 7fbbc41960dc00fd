#!/bin/sh
# Install what some campaigns need and this machine lacks: Prometheus, the tools that make network namespaces, and
# libfiu, which makes the file operations of a process fail.
# The packages are Debian's, and only root can install them. For anyone else, those tests are skipped.
set -eu

missing=""
for pair in prometheus:prometheus iproute2:ip util-linux:unshare fiu-utils:fiu-run; do
    command -v "${pair#*:}" >/dev/null || missing="$missing ${pair%:*}"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "make campaigns: the tests that need these Debian packages are skipped:$missing" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -qq -y --no-install-recommends $missing >/dev/null; }; then
    echo "make campaigns: the tests that need these Debian packages are skipped, they cannot be installed:$missing" >&2
fi
