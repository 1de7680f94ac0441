//! Time stamps of a pod's first container, from the shim's first instruction to its last answer: what `husk bench` draws.
//!
//! Taking one is a clock reading and a store, so it is always done; the file, one line a pod, is written only where
//! `log.phases_file` names it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use log::warn;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::vm::Machine;

/// The file grows no further, in bytes: somebody has left the key switched on.
const MOST: u64 = 1024 * 1024;

/// What has just happened, in the order in which it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stamp {
    /// `start` begins.
    Start,
    /// The shim listens to containerd's calls.
    Serving,
    /// Create comes in.
    CreateReceived,
    /// The VMM is started.
    MachineAsked,
    /// A vCPU enters the guest.
    GuestEntered,
    /// The guest's kernel executes `/init`, the agent.
    Init,
    /// The agent has answered Health.
    AgentReady,
    /// The guest is this pod's.
    SandboxMade,
    /// The container is made; Create is answered.
    ContainerMade,
    /// Start comes in.
    StartReceived,
    /// Its program runs; Start is answered.
    ProgramStarted,
    /// Its exit is published.
    ExitTold,
    /// Delete comes in.
    DeleteReceived,
    /// The VMM's process has ended; before Delete comes in, where nobody asks for it soon enough.
    MachineStopped,
    /// The container is gone; Delete is answered.
    Deleted,
}

/// [`Stamp::Deleted`] is the last.
const ALL: [Stamp; Stamp::Deleted as usize + 1] = [
    Stamp::Start,
    Stamp::Serving,
    Stamp::CreateReceived,
    Stamp::MachineAsked,
    Stamp::GuestEntered,
    Stamp::Init,
    Stamp::AgentReady,
    Stamp::SandboxMade,
    Stamp::ContainerMade,
    Stamp::StartReceived,
    Stamp::ProgramStarted,
    Stamp::ExitTold,
    Stamp::DeleteReceived,
    Stamp::MachineStopped,
    Stamp::Deleted,
];

/// The process is one pod's. 0: has not happened.
static STAMPS: [AtomicU64; ALL.len()] = [const { AtomicU64::new(0) }; ALL.len()];

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The pod: its first container's id.
    pub id: String,
    /// CLOCK_MONOTONIC in nanoseconds. What has not happened, or cannot be known, is not there.
    pub at: BTreeMap<Stamp, u64>,
}

/// CLOCK_MONOTONIC, in nanoseconds.
#[must_use]
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Since boot: neither is negative, and 64 bits hold 584 years.
    now.tv_sec.unsigned_abs().saturating_mul(1_000_000_000).saturating_add(now.tv_nsec.unsigned_abs())
}

/// This happens now, unless it did before: the first container counts.
pub fn stamp(what: Stamp) {
    set(what, now());
}

fn set(what: Stamp, at: u64) {
    let _ = STAMPS[what as usize].compare_exchange(0, at, Ordering::Relaxed, Ordering::Relaxed);
}

/// Asks the VMM when the guest began. `init_tsc` is the guest's word for its time stamp counter at `/init`.
pub async fn of_guest(machine: Arc<Machine>, init_tsc: u64) {
    let metrics = match machine.metrics().await {
        Ok(metrics) => metrics,
        Err(cause) => {
            warn!(stage = "phases"; "the VMM does not say when its guest began: {cause}");
            return;
        }
    };
    if metrics.guest_entered_at_ns == 0 {
        return;
    }
    set(Stamp::GuestEntered, metrics.guest_entered_at_ns);
    if let Some(since_counting) = ticks_to_ns(init_tsc, metrics.tsc_khz) {
        let since_entry = since_counting.saturating_sub(metrics.vcpus_to_guest_ns);
        set(Stamp::Init, metrics.guest_entered_at_ns.saturating_add(since_entry));
    }
}

/// None if the counter's speed is not known, or the guest's word cannot be.
fn ticks_to_ns(ticks: u64, khz: u32) -> Option<u64> {
    u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(std::num::NonZero::new(khz)?.get())).ok()
}

/// Appends this pod's line to the file, if one is named. A failure is a line in the log: nothing depends on it.
pub fn append(file: &Path, id: &str) {
    if file.as_os_str().is_empty() {
        return;
    }
    let taken = ALL.into_iter().zip(&STAMPS).map(|(stamp, at)| (stamp, at.load(Ordering::Relaxed)));
    let line = Line { id: id.to_owned(), at: taken.filter(|(_, at)| *at != 0).collect() };
    if let Err(cause) = write(file, &line) {
        warn!(stage = "phases"; "cannot write log.phases_file {}: {cause}", file.display());
    }
}

fn write(path: &Path, line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    // Neither a link nor a fifo without a reader can lead it astray.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    if file.metadata()?.len() >= MOST {
        return Err(io::Error::other(format!("it has {MOST} bytes, which is the most: remove it")));
    }
    // One write: lines of several pods do not mix.
    file.write_all(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stamp_counts_and_the_line_is_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("phases");
        let before = now();
        stamp(Stamp::Start);
        stamp(Stamp::Serving);
        let first = STAMPS[Stamp::Start as usize].load(Ordering::Relaxed);
        stamp(Stamp::Start);
        append(&file, "a");
        append(&file, "b");
        let text = std::fs::read_to_string(&file).unwrap();
        let lines: Vec<Line> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| &*line.id).collect::<Vec<_>>(), ["a", "b"]);
        let at = &lines[0].at;
        assert_eq!(at[&Stamp::Start], first);
        assert!(before <= first && first <= at[&Stamp::Serving], "{at:?}");
        assert!(!at.contains_key(&Stamp::Deleted));
    }

    #[test]
    fn the_file_ends_somewhere_and_is_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("phases");
        let line = Line { id: "a".into(), at: BTreeMap::new() };
        std::fs::File::create(&file).unwrap().set_len(MOST).unwrap();
        assert!(write(&file, &line).unwrap_err().to_string().contains("remove it"));
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(write(&link, &line).is_err());
    }

    #[test]
    fn ticks_are_times() {
        assert_eq!(ticks_to_ns(3_000_000, 3_000_000), Some(1_000_000));
        assert_eq!(ticks_to_ns(5, 0), None);
        assert_eq!(ticks_to_ns(u64::MAX, 1), None);
    }

    #[test]
    fn the_table_is_in_the_order_of_the_stamps() {
        for (place, stamp) in ALL.into_iter().enumerate() {
            assert_eq!(stamp as usize, place);
        }
    }
}
