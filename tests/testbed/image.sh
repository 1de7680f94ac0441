#!/bin/bash
# Builds the test bed's base image: a Debian trixie host with containerd, runc, CNI plugins and a kernel with KVM.
#   image.sh            prints the image's directory as its last line: root.img vmlinuz initrd.gz
# Cached by content (this script and the mirror's package versions at the time) under ~/.cache/husk/testbed/<key>/.
# husk itself is not in it: `run` puts the current build in at every boot.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/common.sh"
die() { say "error: $*"; exit 1; }

packages=(containerd runc containernetworking-plugins iproute2 kmod busybox-static linux-image-cloud-amd64 iptables procps e2fsprogs strace ca-certificates
  # For the cases of the network.
  apt dnsmasq-base iperf3 nginx
  # What husk's network is measured beside.
  qemu-system-x86)
key=$(cat "$here/image.sh" | sha256sum | cut -c1-16)
dir=$cache/$key
if [ -e "$dir/root.img" ]; then echo "$dir"; exit 0; fi

for tool in mmdebstrap mke2fs cpio xz; do
  command -v "$tool" >/dev/null || die "$tool is missing: run make setup"
done
mirror=$(debian_mirror)

mkdir -p "$cache"
work=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
room "$work" 3000 "the image"
cd "$work"
say "1/3 download and unpack Debian trixie (about a minute)"
include=$(IFS=,; echo "${packages[*]}")
mmdebstrap --quiet --variant=essential --include="$include" trixie root.tar "deb $mirror trixie main" >mmdebstrap.log 2>&1 ||
  { tail -n 20 mmdebstrap.log >&2; die "mmdebstrap failed: see above"; }
mkdir root && tar -xf root.tar -C root --exclude='./dev/*' && rm root.tar
kernel=$(ls root/lib/modules)
cp "root/boot/vmlinuz-$kernel" vmlinuz
rm -rf root/boot/* root/var/cache/apt/* root/var/lib/apt/lists/* root/usr/share/doc root/usr/share/man root/usr/share/locale

# other GENERATION SUITE: another containerd, by itself in /opt; it runs on trixie's libraries and with trixie's runc. A
# mirror that has moved on is no reason to be without a test bed: the image is without that generation then.
other() {
  local apt=$work/apt-$1 options
  mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $2 main" >"$apt/sources.list"
  # sid's Release file may be past its date.
  options=(-q -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists" -o "Dir::Cache=$apt/cache"
    -o Dir::State::status=/dev/null -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root)
  (cd "$apt" && apt-get "${options[@]}" update && apt-get "${options[@]}" download containerd) >"$apt/log" 2>&1 ||
    { tail -n 5 "$apt/log" >&2; say "warning: no containerd $1 in this image: cannot get it from $2"; return; }
  local version; version=$(dpkg-deb -f "$apt"/containerd_*.deb Version)
  [[ $version == $1.* ]] || { say "warning: no containerd $1 in this image: $2 has $version"; return; }
  dpkg-deb -x "$apt"/containerd_*.deb "root/opt/containerd-$1"
  rm -rf "$apt" "root/opt/containerd-$1/usr/share"
}
other 1.6 bookworm
other 2.1 sid

say "2/3 initramfs that mounts the disk (kernel $kernel)"
mkdir -p initrd/{bin,modules,dev,proc,disk}
cp root/usr/bin/busybox initrd/bin/
# The disk is a block device of virtio's, or memory (`run --count`). In the order in which they are needed, which is the alphabet's.
for module in libnvdimm nd_btt nd_pmem nfit virtio_blk; do
  find "root/lib/modules/$kernel" -name "$module.ko*" -exec cp {} initrd/modules/ \;
done
xz -q -d initrd/modules/*.xz 2>/dev/null || true
cat >initrd/init <<'I'
#!/bin/busybox sh
# Mounts the disk, puts the files of this run over it and goes on there.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
for module in /modules/*.ko; do /bin/busybox insmod "$module"; done
if [ -b /dev/pmem0 ]; then disk=/dev/pmem0; else disk=/dev/vda; fi
/bin/busybox mount -t ext4 -o noatime $disk /disk
if [ -d /put ]; then /bin/busybox cp -a /put/. /disk/; /bin/busybox rm -rf /put; fi
exec /bin/busybox switch_root /disk /husk-testbed/init
I
chmod +x initrd/init
(cd initrd && archive | gzip -1) >initrd.gz

say "3/3 disk"
truncate -s 4G root.img
mke2fs -q -F -t ext4 -O ^has_journal -E lazy_itable_init=1 -d root root.img
rm -rf root initrd mmdebstrap.log apt-*
keep "$work" "$dir" root.img
echo "$dir"
