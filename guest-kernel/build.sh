#!/bin/bash
# Builds the guest kernel: Debian's linux-source-6.12, `make tinyconfig` and config.fragment.
#   build.sh            prints the path of the finished vmlinux as its last line; beside it: the same kernel as a bzImage, for
#                       measurements of VMMs that take no vmlinux with a 64-bit entry
# HUSK_KERNEL_VERSION names another version of the package than apt's candidate.
# Cached by content under ~/.cache/husk/guest-kernel/<key>/; a second run only looks the key up.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
cache=${HUSK_CACHE:-$HOME/.cache/husk}/guest-kernel
say() { printf 'guest-kernel: %s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

package=linux-source-6.12
version=${HUSK_KERNEL_VERSION:-$(apt-cache policy "$package" 2>/dev/null | awk '/Candidate:/ {print $2}')}
# What was built before stays good while nobody asks for another version: a mirror that moved on must not cost minutes.
content=$( (cat "$here/config.fragment" "$here/build.sh"; echo "${HUSK_KERNEL_VERSION:-}") | sha256sum | cut -c1-16)
if [ -e "$cache/$content/vmlinux" ]; then
  say "cached: $(cat "$cache/$content/version"), $(stat -c %s "$cache/$content/vmlinux") bytes"
  echo "$cache/$content/vmlinux"; exit 0
fi
[ -n "$version" ] && [ "$version" != "(none)" ] ||
  die "no package $package: it is in Debian 13 (trixie) and in Debian 12's bookworm-security and bookworm-backports. Add one of them to the apt sources, run apt-get update, and try again."

work=$(mktemp -d "${TMPDIR:-/var/tmp}/husk-kernel.XXXXXX")
trap 'rm -rf "$work"' EXIT
free=$(df --output=avail -BM "$work" | tail -n 1 | tr -dc 0-9)
[ "$free" -ge 4000 ] || die "building needs 4 GB in $(dirname "$work"), $free MB are free: set TMPDIR to a place with more."

cd "$work"
say "1/4 download $package $version (about 150 MB)"
apt-get -q download "$package=$version" >apt.log 2>&1 || { tail -n 5 apt.log >&2; die "apt-get download $package=$version failed: see above; run apt-get update if the list is old."; }
say "2/4 unpack"
dpkg-deb --fsys-tarfile "$package"_*.deb | tar -xO --wildcards './usr/src/*.tar.xz' | xz -dc -T0 | tar -x
rm -f "$package"_*.deb
cd linux-source-6.12
say "3/4 configure"
sed -E 's/[[:space:]]+#.*$//; /^#/d; /^[[:space:]]*$/d; s/^(CONFIG_[A-Z0-9_]+)=n$/# \1 is not set/' "$here/config.fragment" >husk.config
{ make -s tinyconfig && ./scripts/kconfig/merge_config.sh -m .config husk.config && make -s olddefconfig; } >config.log 2>&1 || { cat config.log >&2; die "configuration failed: see above"; }
missing=0
while IFS= read -r line; do
  option=${line#\# }; option=${option%%[= ]*}
  case "$line" in
    \#*) if grep -q "^$option=" .config; then say "did not stick: $option=n (is $(grep "^$option=" .config))"; missing=1; fi ;;
    *) if ! grep -qxF "$line" .config; then say "did not stick: $line (is $(grep -E "^(# )?$option[= ]" .config || echo absent))"; missing=1; fi ;;
  esac
done <husk.config
[ "$missing" = 0 ] || die "the options above did not stick: give them their dependencies, or drop them"
if grep -q '=m$' .config; then die "modules in the configuration: $(grep '=m$' .config | tr '\n' ' ')"; fi

jobs=$(nproc); total=2700 # objects, about: only for the progress line
say "4/4 build with $jobs jobs (6-9 minutes on 2 cores)"
export KBUILD_BUILD_USER=husk KBUILD_BUILD_HOST=husk KBUILD_BUILD_TIMESTAMP='2024-11-17 00:00:00 UTC'
(make -j"$jobs" vmlinux bzImage 2>&1; echo "exit $?") | tee build.log | awk -v total="$total" '
  / (CC|AS|LD|AR) / { n++; if (n % 100 == 0) { p = int(100 * n / total); if (p > 99) p = 99; printf "guest-kernel: %d %% (%d objects)\n", p, n; fflush() } }' >&2
tail -n 1 build.log | grep -qx 'exit 0' || { grep -E 'error|Error' build.log | tail -n 20 >&2; die "the build failed: see above"; }
strip --strip-debug -o vmlinux.stripped vmlinux
mkdir -p "$cache/$content.new.$$"
cp vmlinux.stripped "$cache/$content.new.$$/vmlinux"; cp .config "$cache/$content.new.$$/config"
cp arch/x86/boot/bzImage "$cache/$content.new.$$/bzImage"
echo "$(make -s kernelrelease) (Debian $version)" >"$cache/$content.new.$$/version"
rm -rf "${cache:?}/$content"; mv "$cache/$content.new.$$" "$cache/$content"
say "built $(cat "$cache/$content/version"): $(size vmlinux | awk 'NR==2 {printf "text %d data %d bss %d bytes", $1, $2, $3}')"
echo "$cache/$content/vmlinux"
