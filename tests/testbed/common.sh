# What the scripts of the test bed share; sourced.
cache=${HUSK_CACHE:-$HOME/.cache/husk}/testbed
say() { printf 'testbed: %s\n' "$*" >&2; }
# The mirror that this machine uses; trixie's keyring comes with the machine's own.
debian_mirror() {
  local mirror=${HUSK_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' | sed -n 's/^Debian \(http.*\)/\1/p' | grep -v security | sort -u | head -n 1 || true)}
  [ -n "$mirror" ] || die "apt knows no mirror: run apt-get update, or set HUSK_DEBIAN_MIRROR to one that has trixie"
  echo "$mirror"
}
# room DIRECTORY MB WHAT: there is as much free.
room() {
  local free; free=$(df --output=avail -BM "$1" | tail -n 1 | tr -dc 0-9)
  [ "$free" -ge "$2" ] || die "$3 needs $2 MB in $cache, $free are free: set HUSK_CACHE to a place with more"
}
# keep WORK DIRECTORY FILE: what was built in WORK stays as DIRECTORY. Two builds at once: the first to finish stays.
keep() {
  chmod 755 "$1"
  mv -T "$1" "$2" 2>/dev/null || [ -e "$2/$3" ] || die "cannot move $1 to $2"
  trap - EXIT; rm -rf "$1"
  say "built $2"
}
# archive >FILE: the files below this directory, as the kernel's initramfs and cpio(1) take them.
archive() { find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0; }
# in_tree TREE PROGRAM: makes the array in_tree the command that runs a program of another Debian, which lies unpacked in
# TREE, with that Debian's libraries.
in_tree() {
  local libraries=$1/usr/lib/x86_64-linux-gnu
  in_tree=(env "LTDL_LIBRARY_PATH=$libraries/bochs/plugins" "BXSHARE=$1/usr/share/bochs"
    "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries:$libraries/pulseaudio" "$1/usr/bin/$2")
}
