#!/bin/bash
# Builds what `run --cpu intel` takes beside the base image: Debian's Bochs and a CD that starts the image's kernel in it.
#   bochs.sh IMAGE      prints the directory as its last line: tree/ (Bochs, not installed, see `bochs`) boot.iso
# IMAGE is what image.sh printed. Cached by content (this script and that image) beside it; AMD's test bed never needs it.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/common.sh"
die() { say "error: $*"; exit 1; }
image=$1

# Instructions in a simulated second. Time in this host is counted in instructions: its clocks, and the limits of what runs
# in it, know nothing of how fast or how busy this machine is. The number is about that of QEMU's host; `bochs` reads it.
ips=200000000
# What the host is slow to load, or needs before it has its disk; those that they need come along.
modules=(sd_mod ata_piix kvm-intel overlay tun loop veth br_netfilter)

key=$(cat "$here/bochs.sh" <(basename "$image") | sha256sum | cut -c1-16)
dir=$cache/bochs-$key
if [ -e "$dir/boot.iso" ]; then echo "$dir"; exit 0; fi
for tool in mmdebstrap debugfs modprobe objcopy cpio xz; do
  command -v "$tool" >/dev/null || die "$tool is missing: run make setup"
done
mirror=$(debian_mirror)
work=$(mktemp -d "$cache/new.XXXXXX")
trap 'rm -rf "$work"' EXIT
room "$work" 1000 Bochs
cd "$work"

# trixie's: 3.1 (sid) does not boot this kernel, 2.7 (bookworm) is half as fast.
say "1/2 download and unpack Bochs of Debian trixie (15 s)"
mmdebstrap --quiet --variant=extract --include=bochs,bochs-term,bochsbios,vgabios,xorriso,isolinux,syslinux-common \
  trixie tree "deb $mirror trixie main" >mmdebstrap.log 2>&1 ||
  { tail -n 20 mmdebstrap.log >&2; die "mmdebstrap failed: see above"; }

say "2/2 a CD with the kernel and an initramfs that mounts the disk"
mkdir -p cd initrd/{bin,modules,dev,proc,sys,disk}
debugfs -R "dump /usr/bin/busybox initrd/bin/busybox" "$image/root.img" 2>>debugfs.log
mkdir lib && debugfs -R "rdump /usr/lib/modules lib" "$image/root.img" 2>>debugfs.log
kernel=$(ls lib/modules) || { cat debugfs.log >&2; die "no modules in $image/root.img"; }
mkdir host && ln -s ../lib host/lib
for module in "${modules[@]}"; do modprobe -d host -S "$kernel" --show-depends "$module"; done |
  awk '$1 == "insmod" && !seen[$2]++ {print $2}' >order
while read -r file; do
  name=$(basename "$file" .ko.xz)
  xz -dc "$file" >"initrd/modules/$name.ko"
  # Without types and signature the kernel loads one in a tenth of the time.
  objcopy --strip-debug -R .BTF "initrd/modules/$name.ko"
  echo "$name" >>initrd/modules/order
done <order
# The APIC virtualisation of Bochs 3.0 loses interrupts.
cat >initrd/init <<'I'
#!/bin/busybox sh
# Mounts the first disk, unpacks the second, which has the files of this run, over it, and goes on there.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
for module in $(/bin/busybox cat /modules/order); do
  case $module in kvm-intel) options=enable_apicv=0 ;; *) options= ;; esac
  /bin/busybox insmod /modules/$module.ko $options || echo "cannot load $module"
done
# Their places on the bus: the names sda, sdb and sdc go by which of them answers first.
disk() { for block in /sys/class/scsi_disk/$1/device/block/*; do echo "/dev/${block##*/}"; done; }
failed() { echo "testbed: $1"; /bin/busybox ls -l /dev/sd* /sys/block/; exit 1; }
/bin/busybox mount -t ext4 -o noatime "$(disk 0:0:0:0)" /disk || failed "cannot mount the host's disk"
cd /disk
/bin/busybox cpio -i -d -u --quiet <"$(disk 0:0:1:0)" || failed "cannot unpack the files of this run"
disk 1:0:1:0 >husk-testbed/get.disk
/bin/busybox umount /sys
exec /bin/busybox switch_root /disk /husk-testbed/init
I
chmod +x initrd/init initrd/bin/busybox
# Not compressed: to unpack it would take longer than to read it.
(cd initrd && archive) >cd/initrd
cp "$image/vmlinuz" tree/usr/lib/ISOLINUX/isolinux.bin tree/usr/lib/syslinux/modules/bios/ldlinux.c32 cd/
# tsc_early_khz: the clock cannot be measured where all time is counted. cryptomgr.notests: its tests take a minute.
# nopku, clearcpuid: what of XSAVE Bochs does not have all of, and Linux does without AVX for it. reboot=t: a kernel that
# restarts ends Bochs by a triple fault.
cat >cd/isolinux.cfg <<C
DEFAULT host
PROMPT 0
LABEL host
 KERNEL /vmlinuz
 INITRD /initrd
 APPEND console=ttyS0,115200 panic=-1 reboot=t quiet mitigations=off nokaslr cryptomgr.notests tsc_early_khz=$((ips / 1000)) nopku clearcpuid=xsaves,xsavec
C
in_tree tree xorriso
"${in_tree[@]}" -as mkisofs -quiet -o boot.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table cd >xorriso.log 2>&1 ||
  { cat xorriso.log >&2; die "xorriso failed: see above"; }
echo "$ips" >ips
(cd tree/usr && rm -rf share/{doc,man,locale,icons,gtk*,fonts,perl*,X11,mime} bin/xorriso* lib/syslinux lib/ISOLINUX sbin)
rm -rf cd initrd lib host order ./*.log
keep "$work" "$dir" boot.iso
echo "$dir"
