#!/bin/bash
# Installs what building and testing husk take: Debian packages, the guest kernel, the test bed's image. Idempotent; what
# is there is not made again. `make setup` calls it and builds husk itself.
set -euo pipefail
repo=$(readlink -f "$(dirname "$(readlink -f "$0")")/..")
say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

packages=(build-essential bc bison flex libelf-dev libssl-dev libseccomp-dev cpio kmod xz-utils busybox-static e2fsprogs mmdebstrap qemu-system-x86 perl)
# For the QEMU of the counting test bed, which is built at its first use.
packages+=(ninja-build meson pkg-config libglib2.0-dev libpixman-1-dev libfdt-dev)

say "1/4 the machine"
[ -r /etc/os-release ] || die "no /etc/os-release: husk is built on Debian 12 or 13"
. /etc/os-release
case ${ID:-}:${VERSION_ID:-} in
  debian:12|debian:13) ;;
  *) die "this is ${PRETTY_NAME:-an unknown system}; husk's set-up knows Debian 12 and 13. Build in a container of debian:13, or install by hand: ${packages[*]}" ;;
esac
[ "$(uname -m)" = x86_64 ] || die "this is $(uname -m); husk runs on x86_64 only"
[ "$(id -u)" = 0 ] || die "the test bed's image takes root to be built: run all of husk's make targets as root"
command -v cargo >/dev/null || die "cargo is missing: install Rust (https://rustup.rs) and open a new shell"
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
found=$(rustc --version | cut -d' ' -f2)
[ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
  die "this is Rust $found, and husk needs $wanted: rustup update stable, or install Rust by https://rustup.rs"
for part in clippy fmt; do
  cargo "$part" --version >/dev/null 2>&1 || die "cargo $part is missing: rustup component add clippy rustfmt"
done
target=${CARGO_TARGET_DIR:-$repo/target}
mkdir -p "$repo/target" "$target" "${HUSK_CACHE:-$HOME/.cache/husk}"
free=$(df --output=avail -BM "$target" | tail -n 1 | tr -dc 0-9)
there=$(du -sm "$target" | cut -f1)
[ $((free + there)) -ge 4000 ] ||
  die "$target has $free MB free, and a build takes 4000: make room, or set CARGO_TARGET_DIR to another place"

say "2/4 Debian packages"
missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" = "ii " ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  say "to install: ${missing[*]}"
  apt-get -q update >&2 || die "apt-get update failed: see above"
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}" >&2 ||
    die "apt-get install failed: see above"
fi

say "3/4 the guest kernel"
kernel=$("$repo/guest-kernel/build.sh" | tail -n 1)
ln -sfn "$kernel" "$repo/target/vmlinux"

say "4/4 the test bed's image"
"$repo/tests/testbed/image.sh" >/dev/null
say "done"
