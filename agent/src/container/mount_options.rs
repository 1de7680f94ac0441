//! What the options of a mount mean (runtime-spec, config.md, "Linux mount options"; mount(8)).

use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// Attributes to set and to take away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) set: MountAttrFlags,
    pub(super) clear: MountAttrFlags,
}

impl Attributes {
    /// Nothing is changed.
    pub(super) const NONE: Self = Self { set: MountAttrFlags::empty(), clear: MountAttrFlags::empty() };
    /// Nothing can be written.
    pub(super) const READ_ONLY: Self = Self { set: MountAttrFlags::MOUNT_ATTR_RDONLY, clear: MountAttrFlags::empty() };

    /// Whether they change something.
    pub(super) fn is_empty(self) -> bool {
        self.set.is_empty() && self.clear.is_empty()
    }

    /// The later word counts.
    fn and(self, set: MountAttrFlags, clear: MountAttrFlags) -> Self {
        Self { set: self.set.difference(clear).union(set), clear: self.clear.difference(set).union(clear) }
    }
}

/// The options of a mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    /// Of the mount itself.
    pub(super) attributes: Attributes,
    /// Of it and of all mounts in it (`rro` and the like).
    pub(super) recursive: Attributes,
    /// What happens to mounts that are made in it later; none: nobody sees them.
    pub(super) propagation: Option<MountPropagationFlags>,
    /// For the file system itself: key, and value if it has one.
    pub(super) data: Vec<(String, Option<String>)>,
}

/// Names of the attributes and what they set and take away; with an `r` before them: in all mounts below, too.
const ATTRIBUTES: [(&str, MountAttrFlags, MountAttrFlags); 17] = {
    use MountAttrFlags as F;
    let none = F::empty();
    let times = F::MOUNT_ATTR__ATIME;
    [
        ("ro", F::MOUNT_ATTR_RDONLY, none),
        ("rw", none, F::MOUNT_ATTR_RDONLY),
        ("nosuid", F::MOUNT_ATTR_NOSUID, none),
        ("suid", none, F::MOUNT_ATTR_NOSUID),
        ("nodev", F::MOUNT_ATTR_NODEV, none),
        ("dev", none, F::MOUNT_ATTR_NODEV),
        ("noexec", F::MOUNT_ATTR_NOEXEC, none),
        ("exec", none, F::MOUNT_ATTR_NOEXEC),
        ("nodiratime", F::MOUNT_ATTR_NODIRATIME, none),
        ("diratime", none, F::MOUNT_ATTR_NODIRATIME),
        ("nosymfollow", F::MOUNT_ATTR_NOSYMFOLLOW, none),
        ("symfollow", none, F::MOUNT_ATTR_NOSYMFOLLOW),
        // One of them holds (mount_setattr(2)); without "relatime" Linux does the same.
        ("noatime", F::MOUNT_ATTR_NOATIME, times),
        ("strictatime", F::MOUNT_ATTR_STRICTATIME, times),
        ("relatime", F::MOUNT_ATTR_RELATIME, times),
        ("atime", F::MOUNT_ATTR_RELATIME, times),
        ("nostrictatime", F::MOUNT_ATTR_RELATIME, times),
    ]
};

/// Names of what happens to mounts that are made later; with an `r` before them: in all mounts below, too.
const PROPAGATION: [(&str, MountPropagationFlags); 4] = [
    ("private", MountPropagationFlags::PRIVATE),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("shared", MountPropagationFlags::SHARED),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
];

/// Of what a bind mount is, seen to by whoever opened its source; and "nothing in particular".
const WITHOUT_MEANING: [&str; 5] = ["defaults", "bind", "rbind", "idmap", "ridmap"];

/// The entry of `table` for an option, and whether its name began with an `r`.
fn find<T>(table: &[T], name: impl Fn(&T) -> &'static str, option: &str) -> Option<(usize, bool)> {
    let at = |wanted: &str| table.iter().position(|row| name(row) == wanted);
    at(option).map(|row| (row, false)).or_else(|| Some((at(option.strip_prefix('r')?)?, true)))
}

impl Options {
    pub(super) fn parse(options: &[String]) -> Self {
        let mut parsed =
            Self { attributes: Attributes::NONE, recursive: Attributes::NONE, propagation: None, data: Vec::new() };
        for option in options {
            if let Some((row, recursive)) = find(&ATTRIBUTES, |row| row.0, option) {
                let (_, set, clear) = ATTRIBUTES[row];
                let of = if recursive { &mut parsed.recursive } else { &mut parsed.attributes };
                *of = of.and(set, clear);
            } else if let Some((row, recursive)) = find(&PROPAGATION, |row| row.0, option) {
                let all = if recursive { MountPropagationFlags::REC } else { MountPropagationFlags::empty() };
                parsed.propagation = Some(PROPAGATION[row].1 | all);
            } else if !WITHOUT_MEANING.contains(&option.as_str()) {
                let (key, value) =
                    option.split_once('=').map_or((option.as_str(), None), |(key, value)| (key, Some(value)));
                parsed.data.push((key.to_owned(), value.map(str::to_owned)));
            }
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_attributes_or_the_file_systems_own() {
        let parsed =
            parse(&["nosuid", "strictatime", "mode=755", "size=65536k", "newinstance", "rprivate", "ro", "rw"]);
        assert_eq!(parsed.attributes.set, MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME);
        assert!(parsed.attributes.clear.contains(MountAttrFlags::MOUNT_ATTR_RDONLY));
        let data: Vec<_> = parsed.data.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        assert_eq!(data, [("mode", Some("755")), ("size", Some("65536k")), ("newinstance", None)]);
        // The last of the access times counts.
        assert_eq!(parse(&["strictatime", "noatime"]).attributes.set, MountAttrFlags::MOUNT_ATTR_NOATIME);
    }

    #[test]
    fn what_the_shim_says_that_we_know_is_not_the_file_systems() {
        for option in husk_protocol::document::MOUNT_OPTIONS {
            assert_eq!(parse(&[option]).data, [], "{option}");
        }
        let tables = ATTRIBUTES.iter().map(|row| row.0).chain(PROPAGATION.iter().map(|row| row.0));
        assert_eq!(tables.count() * 2 + WITHOUT_MEANING.len(), husk_protocol::document::MOUNT_OPTIONS.len());
    }

    #[test]
    fn an_r_before_an_attribute_is_for_all_mounts_below() {
        let parsed = parse(&["rbind", "rro", "nosuid", "rnoexec", "relatime", "rslave"]);
        assert_eq!(parsed.attributes.set, MountAttrFlags::MOUNT_ATTR_NOSUID);
        assert_eq!(parsed.recursive.set, MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOEXEC);
        assert_eq!(parsed.propagation, Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC));
        assert_eq!(parsed.data, []);
        // "rw" is no "w" in all mounts below, and "rrw" is.
        let parsed = parse(&["rrw", "rrelatime"]);
        assert!(parsed.recursive.clear.contains(MountAttrFlags::MOUNT_ATTR_RDONLY) && parsed.attributes.is_empty());
    }
}
