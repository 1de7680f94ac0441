#!/bin/bash
# Installs what building and testing husk take: Debian packages, the guest kernel, the test bed's image. Idempotent; what
# is there is not made again. `make setup` calls it and builds husk itself.
set -euo pipefail
repo=$(readlink -f "$(dirname "$(readlink -f "$0")")/..")
say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

packages=(build-essential bc bison flex libelf-dev libssl-dev cpio kmod xz-utils busybox-static e2fsprogs mmdebstrap qemu-system-x86 perl)

say "1/4 the machine"
[ -r /etc/os-release ] || die "no /etc/os-release: husk is built on Debian 12 or 13"
. /etc/os-release
case ${ID:-}:${VERSION_ID:-} in
  debian:12|debian:13) ;;
  *) die "this is ${PRETTY_NAME:-an unknown system}; husk's set-up knows Debian 12 and 13. Build in a container of debian:13, or install by hand: ${packages[*]}" ;;
esac
[ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); husk runs on x86_64 only"
command -v cargo >/dev/null || die "cargo is missing: install Rust (https://rustup.rs) and open a new shell"
mkdir -p "$repo/target" "${HUSK_CACHE:-$HOME/.cache/husk}"
enough() { # enough PATH MB: room for what is not there yet
  local free; free=$(df --output=avail -BM "$1" | tail -n 1 | tr -dc 0-9)
  [ "$free" -ge "$2" ] || die "$1 has $free MB free, and $2 are needed: make room, or set $3 to another place"
}
enough "$repo/target" 3000 CARGO_TARGET_DIR

say "2/4 Debian packages"
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "to install: ${missing[*]}"
  if [ "$(id -u)" = 0 ]; then root=(); elif command -v sudo >/dev/null; then root=(sudo); else
    die "installing them takes root, and there is no sudo. Run as root: apt-get install --no-install-recommends ${missing[*]}"
  fi
  "${root[@]}" apt-get -q update >&2 || die "apt-get update failed: see above"
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" >&2 ||
    die "apt-get install failed: see above"
fi

say "3/4 the guest kernel"
kernel=$("$repo/guest-kernel/build.sh" | tail -n 1)
ln -sfn "$kernel" "$repo/target/vmlinux"

say "4/4 the test bed's image"
[ "$(id -u)" = 0 ] || die "building the test bed's image takes root: run make setup as root once"
"$repo/tests/testbed/image.sh" >/dev/null
say "done"
