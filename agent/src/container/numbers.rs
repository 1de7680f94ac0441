//! Device numbers of the document, which are the host's, and what they are in the guest.
//!
//! Most numbers were assigned once and mean the same in every kernel (Documentation/admin-guide/devices.txt). Some ranges
//! are given out while a kernel runs: such a number names one device on the host, and another one or none in the guest.

use std::fs;

/// What a device node is to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `b`.
    Block,
    /// `c`.
    Character,
}

/// The major number of miscellaneous devices, which are told apart by their minor numbers.
const MISC: u32 = 10;

/// Whether a kernel gives out this number while it runs (devices.txt: "local/experimental" and "dynamic"; drivers/block and
/// fs/char_dev.c for the ranges beyond).
pub(super) fn is_given_out(kind: Kind, major: u32, minor: Option<u32>) -> bool {
    let local = matches!(major, 60..=63 | 120..=127 | 240..=254);
    match kind {
        Kind::Block => local || major >= 259,
        Kind::Character if major == MISC => minor.is_some_and(|minor| !(128..255).contains(&minor)),
        Kind::Character => local || (234..=239).contains(&major) || major >= 384,
    }
}

/// The devices that the guest's kernel has drivers for.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    character: Vec<u32>,
    block: Vec<u32>,
    misc: Vec<u32>,
}

impl Drivers {
    /// Of this kernel (proc(5), `/proc/devices`).
    pub(super) fn here() -> std::io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/devices")?, &fs::read_to_string("/proc/misc")?))
    }

    fn parse(devices: &str, misc: &str) -> Self {
        let first = |line: &str| line.split_whitespace().next().and_then(|number| number.parse().ok());
        let (character, block) = devices.split_once("Block devices:").unwrap_or((devices, ""));
        Self {
            character: character.lines().filter_map(first).collect(),
            block: block.lines().filter_map(first).collect(),
            misc: misc.lines().filter_map(first).collect(),
        }
    }

    /// Whether a node of this number leads to the device that it leads to on the host, as far as a machine can have it.
    pub(super) fn have(&self, kind: Kind, major: u32, minor: u32) -> bool {
        let driven = match kind {
            Kind::Block => self.block.contains(&major),
            Kind::Character if major == MISC => self.misc.contains(&minor),
            Kind::Character => self.character.contains(&major),
        };
        driven && !is_given_out(kind, major, Some(minor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_the_same_device_or_none() {
        let devices = "Character devices:\n  1 mem\n  5 /dev/tty\n 10 misc\n136 pts\n254 virtio-portsdev\n\nBlock devices:\n  7 loop\n254 virtblk\n259 blkext\n";
        let drivers = Drivers::parse(devices, "229 fuse\n200 tun\n259 loop-control\n");
        use Kind::{Block, Character};
        for (kind, major, minor) in [(Character, 1, 3), (Character, 136, 5), (Character, 10, 229), (Block, 7, 0)] {
            assert!(drivers.have(kind, major, minor), "{kind:?} {major}:{minor}");
        }
        // Not in a machine (a disk, KVM), and of another meaning (virtio, extended minors, a late misc device).
        let others = [
            (Block, 8, 0),
            (Block, 1, 3),
            (Character, 10, 232),
            (Character, 195, 0),
            (Character, 254, 0),
            (Block, 254, 0),
            (Block, 259, 1),
            (Character, 10, 259),
        ];
        for (kind, major, minor) in others {
            assert!(!drivers.have(kind, major, minor), "{kind:?} {major}:{minor}");
        }
    }

    #[test]
    fn ranges_that_are_given_out_are_known() {
        let given_out = |kind, major, minor| is_given_out(kind, major, minor);
        assert!(given_out(Kind::Block, 253, None) && given_out(Kind::Character, 511, Some(0)));
        assert!(!given_out(Kind::Block, 8, None) && !given_out(Kind::Character, 10, None));
        assert!(!given_out(Kind::Character, 226, Some(128)) && given_out(Kind::Character, 10, Some(60)));
    }

    #[test]
    fn this_kernel_has_drivers() {
        let here = Drivers::here().unwrap();
        assert!(here.have(Kind::Character, 1, 3) && here.have(Kind::Character, 136, 0), "{here:?}");
    }
}
