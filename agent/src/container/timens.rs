//! A container's time namespace (time_namespaces(7)): its own zero of the clocks that count since the boot.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Linux;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

use super::clone::{Cloned, clone_into};
use super::plan::PlanError;

/// CLONE_NEWTIME of linux/sched.h, for unshare(2) and setns(2): clone3(2) has no bit of its own for it.
pub(super) const CLONE_NEWTIME: libc::c_int = 0x80;

/// What the clocks of a time namespace show more than the guest's, as the kernel wants it written.
#[derive(Debug)]
pub(super) struct Offsets(String);

impl Offsets {
    /// The offsets of a document, if it has a time namespace.
    ///
    /// # Errors
    /// A clock that has no offset, or offsets without a namespace.
    pub(super) fn of(linux: &Linux, namespaces: u64) -> Result<Option<Self>, PlanError> {
        let offsets = linux.time_offsets().iter().flatten();
        if namespaces & u64::from(CLONE_NEWTIME.unsigned_abs()) == 0 {
            return match linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()) {
                false => Ok(None),
                true => Err(PlanError::Invalid {
                    what: "linux.timeOffsets".to_owned(),
                    why: "the document has no time namespace for them",
                }),
            };
        }
        let mut text = String::new();
        for (clock, offset) in offsets {
            if !["monotonic", "boottime"].contains(&clock.as_str()) {
                let what = format!("linux.timeOffsets {clock:?}");
                return Err(PlanError::Invalid { what, why: "only monotonic and boottime have offsets" });
            }
            let nanoseconds = offset.nanosecs().unwrap_or(0);
            if nanoseconds >= 1_000_000_000 {
                let what = format!("linux.timeOffsets.{clock}.nanosecs {nanoseconds}");
                return Err(PlanError::Invalid { what, why: "a second has 1000000000" });
            }
            text.push_str(&format!("{clock} {} {nanoseconds}\n", offset.secs().unwrap_or(0)));
        }
        Ok(Some(Self(text)))
    }
}

/// Makes a time namespace: not where this process is, but where its next children are.
///
/// # Errors
/// The step and the kernel's answer.
pub(super) fn make(offsets: &Offsets) -> io::Result<()> {
    let step = |what: &str, cause: io::Error| io::Error::other(format!("cannot {what}: {cause}"));
    // SAFETY: a namespace for children changes nothing that memory safety depends on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWTIME) }
        .map_err(|cause| step("make a time namespace", cause.into()))?;
    // Before anybody is in it: then they are fixed.
    match offsets.0.as_str() {
        "" => Ok(()),
        text => fs::write("/proc/self/timens_offsets", text)
            .map_err(|cause| step(&format!("set linux.timeOffsets ({})", text.trim().replace('\n', ", ")), cause)),
    }
}

/// Like [`clone_into`], into a new time namespace as well. It belongs to the guest, also where the container has a user namespace, so its clocks
/// are set by nobody in it.
///
/// # Errors
/// The kernel's answer; the agent's own children are where they were.
pub(super) fn clone_into_new(offsets: &Offsets, namespaces: u64, directory: &OwnedFd) -> io::Result<Cloned> {
    let own = rustix::fs::open("/proc/self/ns/time", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let cloned = make(offsets).and_then(|()| clone_into(namespaces, directory));
    if matches!(cloned, Ok(Cloned::Child)) {
        return cloned;
    }
    if let Err(cause) = move_into_thread_name_spaces(own.as_fd(), ThreadNameSpaceType::TIME) {
        // The next container would be in this one's time. (The agent's own namespace is always there to return to.)
        log::error!("the agent cannot return to its time namespace: {cause}: the guest ends");
        crate::boot::restart();
    }
    cloned
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn offsets(of: Value, namespaces: u64) -> Result<Option<String>, String> {
        let linux: Linux = serde_json::from_value(json!({ "timeOffsets": of })).unwrap();
        Offsets::of(&linux, namespaces).map(|offsets| offsets.map(|offsets| offsets.0)).map_err(|why| why.to_string())
    }

    #[test]
    fn offsets_are_as_the_kernel_takes_them() {
        assert_eq!(offsets(json!({}), 0), Ok(None));
        assert_eq!(offsets(json!({}), 0x80), Ok(Some(String::new())));
        assert_eq!(
            offsets(json!({ "monotonic": { "secs": -3, "nanosecs": 5 } }), 0x80).unwrap().unwrap(),
            "monotonic -3 5\n"
        );
        assert_eq!(offsets(json!({ "boottime": { "secs": 7 } }), 0x80).unwrap().unwrap(), "boottime 7 0\n");
        let wrong = |of, namespaces| offsets(of, namespaces).unwrap_err();
        assert!(wrong(json!({ "realtime": { "secs": 1 } }), 0x80).contains("linux.timeOffsets \"realtime\""));
        let nanoseconds = json!({ "monotonic": { "nanosecs": 1_000_000_000 } });
        assert!(wrong(nanoseconds, 0x80).contains("linux.timeOffsets.monotonic.nanosecs 1000000000"));
        assert!(wrong(json!({ "boottime": { "secs": 7 } }), 0).contains("no time namespace"));
    }
}
