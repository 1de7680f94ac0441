#!/bin/bash
# Builds what the suite takes into the test bed: containerd's own client tests, and what they want to find on a host.
#   build.sh            prints the directory as its last line: tests/ (client.test, runc-fp) tree/ (over the host's /)
#                       images/ (archives) versions
# Nothing is installed: Debian's packages are unpacked in the cache, and go when the tests are compiled. Cached by content
# (these scripts and the mirror's package versions at the time) below ~/.cache/husk/suites/.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")"); testbed=$here/../../testbed
. "$testbed/common.sh"
cache=${HUSK_CACHE:-$HOME/.cache/husk}/suites
say() { printf 'containerd-client: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

key=$(cat "$here/build.sh" "$here/oci-index" | sha256sum | cut -c1-16)
dir=$cache/containerd-client-$key
if [ -e "$dir/versions" ]; then echo "$dir"; exit 0; fi
mirror=$(debian_mirror)
mkdir -p "$cache"
work=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
room "$work" 5000 "compiling containerd's tests"
cd "$work"

# unpack SUITE DIRECTORY PATTERN PACKAGE...: the packages and what they depend on, as far as its name has the pattern; makes
# `versions` the lines "package version". sid's Release file may be past its date.
unpack() {
  local apt=$work/apt-$1 suite=$1 directory=$2 pattern=$3 options package; shift 3
  mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$directory"; : >"$apt/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
  options=(-q -y --no-install-recommends -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
    -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt" -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root)
  (
    cd "$apt" && apt-get "${options[@]}" update &&
      apt-get "${options[@]}" --print-uris install "$@" | sed -n "s/^'[^']*' \\([^_]*\\)_.*/\\1/p" | grep -E "^($pattern)$" >names &&
      xargs apt-get "${options[@]}" download <names
  ) >"$apt/log" 2>&1 || { tail -n 5 "$apt/log" >&2; die "cannot get $* of $suite: see above"; }
  for package in "$apt"/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$directory" --exclude='./usr/share/doc'
  done
  versions=$(for package in "$apt"/*.deb; do dpkg-deb -W --showformat='${Package} ${Version}\n' "$package"; done)
  rm -rf "$apt"
}
# version PACKAGE
version() { sed -n "s/^$1 //p" <<<"$versions"; }

say "1/3 download and unpack the tests and what they are compiled with, of Debian sid (300 MB)"
tests=golang-github-containerd-containerd-dev
# Only what is of Go: the libraries depend on all kinds of programs, which compiling does without.
unpack sid go 'golang-.*' "$tests" golang-go
containerd=$(version "$tests")
[[ $containerd == 2.1.* ]] || die "sid's $tests is $containerd, and the test bed has containerd 2.1: the suite has to move to another"

say "2/3 compile (two minutes)"
mkdir -p tests
export GOROOT=$work/go/usr/lib/go GOPATH=$work/go/usr/share/gocode GOCACHE=$work/gocache
export GO111MODULE=off CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-trimpath HOME=$work/go
source=$GOPATH/src/github.com/containerd/containerd/v2/integration
cd "$source"
"$GOROOT/bin/go" test -c -ldflags='-s -w' -o "$work/tests/client.test" ./client
# A runc that fails at a chosen moment: two of the tests configure it.
"$GOROOT/bin/go" build -ldflags='-s -w' -o "$work/tests/runc-fp" ./failpoint/cmd/runc-fp
cd "$work"
printf '%s %s\ngo %s\n' "$tests" "$containerd" "$(version golang-go)" >versions.new
rm -rf go gocache

say "3/3 the images that the tests pull, a registry for them, and lsof, of Debian trixie"
unpack trixie debian '.*' docker-registry lsof busybox-static bash-static passwd
mkdir -p tree/usr/bin tree/usr/lib/x86_64-linux-gnu images
cp debian/usr/bin/{docker-registry,lsof} tree/usr/bin/
cp -P debian/usr/lib/x86_64-linux-gnu/liblsof.so.* tree/usr/lib/x86_64-linux-gnu/

# A root as the tests expect it: busybox, and the users www-data (33), sys (3) and backup (34).
mkdir -p root/{bin,dev,etc,home,proc,root,sys,tmp,usr/bin,var} && chmod 1777 root/tmp
cp debian/usr/bin/busybox root/bin/
root/bin/busybox --list | grep -vx busybox | while read -r applet; do ln -s busybox "root/bin/$applet"; done
for user in root:0:0 sys:3:3 www-data:33:33 backup:34:34 nobody:65534:65534; do
  IFS=: read -r name uid gid <<<"$user"
  echo "$name:x:$uid:$gid::/root:/bin/sh" >>root/etc/passwd
  echo "$name:x:$gid:" >>root/etc/group
done
# Whose contents and owners the volume tests look at; bash and a set-user-ID program are in it too.
mkdir -p copy-up/test_dir owned/{test_dir,bin,usr/bin}
echo test_content >copy-up/test_dir/test_file
cp debian/usr/bin/bash-static owned/bin/bash
cp -a debian/usr/bin/passwd owned/usr/bin/
[ -u owned/usr/bin/passwd ] || die "Debian's passwd has lost its set-user-ID bit on the way: is $cache on a file system that has such bits?"
chown -R 65534:65534 owned/test_dir
mkdir pause && cp debian/usr/bin/busybox pause/pause
image() { "$here/oci-index" "$1" "images/$(tr /: -- <<<"$1").tar" "${@:2}"; }
image ghcr.io/containerd/busybox:1.36 root
image ghcr.io/containerd/volume-copy-up:2.2 root copy-up
image ghcr.io/containerd/volume-ownership:2.1 root owned
image registry.k8s.io/pause:3.10 pause
image registry.k8s.io/pause:3.6 pause
image registry.k8s.io/e2e-test-images/busybox:1.29-2 root
rm -rf debian root copy-up owned pause
mv versions.new versions
keep "$work" "$dir" versions
echo "$dir"
