#!/usr/bin/perl
# Builds what the guest boots from: an initramfs (cpio, "newc": Documentation/driver-api/early-userspace/buffer-format.rst)
# with the agent as /init and nothing else.
#   build.sh AGENT OUT
# Uncompressed: unpacking costs the guest more than reading it costs the host. Written here, byte by byte, so that device
# nodes need no root, and the same agent always makes the same file.
use strict; use warnings;

@ARGV == 2 or die "usage: build.sh AGENT OUT\n";
my ($agent, $out) = @ARGV;
open(my $in, '<:raw', $agent) or die "rootfs: cannot read the agent $agent: $!\n";
my $init = do { local $/; <$in> };
substr($init, 0, 4) eq "\x7fELF" or die "rootfs: $agent is not a program\n";

my ($DIR, $FILE, $CHAR) = (0040000, 0100000, 0020000);
# Path, mode, content, major, minor. Without /dev/console pid 1 starts with descriptors 0 to 2 closed, and without
# /dev/null Rust's runtime cannot open them: it aborts.
my @entries = (
  ['dev', $DIR | 0755, '', 0, 0],
  ['dev/console', $CHAR | 0600, '', 5, 1],
  ['dev/null', $CHAR | 0666, '', 1, 3],
  (map { [$_, $DIR | 0755, '', 0, 0] } qw(proc run sys tmp)),
  ['init', $FILE | 0755, $init, 0, 0],
);

my ($cpio, $inode) = ('', 0);
sub add {
  my ($name, $mode, $content, $major, $minor) = @_;
  $name .= "\0";
  my @fields = (++$inode, $mode, 0, 0, 1, 0, length $content, 0, 0, $major, $minor, length $name, 0);
  $cpio .= '070701' . join('', map { sprintf '%08X', $_ } @fields) . $name;
  $cpio .= "\0" x (-length($cpio) % 4) . $content;
  $cpio .= "\0" x (-length($cpio) % 4);
}
add(@$_) for @entries;
add('TRAILER!!!', 0, '', 0, 0);

open(my $to, '>:raw', "$out.new") or die "rootfs: cannot write $out.new: $!\n";
(print {$to} $cpio) && close $to && rename("$out.new", $out) or die "rootfs: cannot write $out: $!\n";
printf STDERR "rootfs: %s: %d bytes\n", $out, length $cpio;
