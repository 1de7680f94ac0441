#!/bin/bash
# Builds the QEMU that `run --count` takes: bookworm's source with one line more. Without it a machine in the counting host
# hangs once in some hundred starts: VMRUN delivers an injected interrupt and leaves its number behind, and where the budget
# of instructions ends next, QEMU takes it for an exception and delivers it once more (docs/operations.md, "Limits").
#   counting.sh         prints the directory as its last line: qemu-system-x86_64
# Cached by content (this script) beside the image; six minutes on two cores, once. Nothing else needs it.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/common.sh"
die() { say "error: $*"; exit 1; }

key=$(sha256sum <"$here/counting.sh" | cut -c1-16)
dir=$cache/qemu-$key
if [ -e "$dir/qemu-system-x86_64" ]; then echo "$dir"; exit 0; fi
for tool in dpkg-source ninja meson pkg-config; do
  command -v "$tool" >/dev/null || die "$tool is missing: run make setup"
done
mirror=$(debian_mirror)
mkdir -p "$cache"
work=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
room "$work" 1500 QEMU
cd "$work"

say "1/2 QEMU's source of Debian bookworm"
mkdir -p apt/lists/partial apt/cache/archives/partial
echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm main" >apt/sources.list
options=(-q -o "Dir::Etc::sourcelist=$work/apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/apt/lists"
  -o "Dir::Cache=$work/apt/cache" -o Dir::State::status=/dev/null -o APT::Sandbox::User=root)
{ apt-get "${options[@]}" update && apt-get "${options[@]}" source --download-only qemu; } >apt.log 2>&1 ||
  { tail -n 5 apt.log >&2; die "cannot get QEMU's source: see above"; }
dpkg-source --no-check -x qemu_*.dsc source >unpack.log 2>&1 || { tail -n 5 unpack.log >&2; die "cannot unpack QEMU's source"; }
version=$(dpkg-parsechangelog -l source/debian/changelog -S Version)
# The branch for interrupts, alone among those of the event injection, goes on without leaving the emulated code.
file=source/target/i386/tcg/sysemu/svm_helper.c
sed -i 's/^\( *\)do_interrupt_x86_hardirq(env, vector, 1);$/&\n\1cs->exception_index = -1;/' "$file"
[ "$(grep -c 'cs->exception_index = -1;' "$file")" = 1 ] || die "QEMU $version is not as expected: see $file of its source"

say "2/2 build it (six minutes on two cores)"
mkdir build && cd build
{ ../source/configure --target-list=x86_64-softmmu --without-default-features --enable-tcg --enable-fdt=system --disable-tools \
    --disable-guest-agent --disable-docs --disable-werror --disable-debug-info --disable-install-blobs \
    --with-pkgversion="Debian $version, an interrupt at VMRUN once" && ninja qemu-system-x86_64; } >../build.log 2>&1 ||
  { tail -n 20 ../build.log >&2; die "cannot build QEMU: see above"; }
cd ..
strip -o qemu-system-x86_64 build/qemu-system-x86_64
find . -mindepth 1 -maxdepth 1 ! -name qemu-system-x86_64 -exec rm -rf {} +
keep "$work" "$dir" qemu-system-x86_64
echo "$dir"
