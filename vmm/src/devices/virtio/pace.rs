//! How fast something may go, and waiting until it may.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// What may come at once after a pause where nobody says otherwise, as time: a tenth of what a second lets through, as blk-throttle
/// has it (`DFL_THROTL_SLICE_HD`).
pub const BURST: Duration = Duration::from_millis(100);

/// How fast something goes, at most (the generic cell rate algorithm, ITU-T I.371): a thing goes on when the ones before
/// it have had their time, and takes its own.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// 0: without a limit.
    per_second: u64,
    burst: Duration,
    /// When the time of all that went through is over.
    over: Instant,
}

/// The time of `units` at `per_second`, which is not 0; as long as there is time, if there are too many.
fn time_of(units: u64, per_second: u64) -> Duration {
    let nanoseconds = u128::from(units) * 1_000_000_000 / u128::from(per_second);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

impl Pace {
    /// So much in a second, 0: without a limit, and [`BURST`] at once.
    #[must_use]
    pub fn new(per_second: u64, now: Instant) -> Self {
        Self { per_second, burst: BURST, over: now }
    }

    /// So much at once instead; 0: as before.
    #[must_use]
    pub fn with_burst(self, units: u64) -> Self {
        if units == 0 || self.per_second == 0 {
            return self;
        }
        Self { burst: time_of(units, self.per_second), ..self }
    }

    /// When the next one goes on; none: at any time.
    #[must_use]
    pub fn ready_at(&self) -> Option<Instant> {
        // No earlier than the clock's beginning.
        (self.per_second > 0).then(|| self.over.checked_sub(self.burst).unwrap_or(self.over))
    }

    /// Takes the time of `units`.
    pub fn take(&mut self, units: u32, now: Instant) {
        if self.per_second > 0 {
            let from = self.over.max(now);
            self.over = from.checked_add(time_of(units.into(), self.per_second)).unwrap_or(from);
        }
    }

    /// Another rate; what went through at the last one has had its time.
    pub fn change(&mut self, per_second: u64, now: Instant) {
        if self.per_second != per_second {
            *self = Self { per_second, over: now, ..*self };
        }
    }
}

/// Rings in an event loop when something that waits may go on.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?))
    }

    /// Lets it ring, once.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn ring_at(&self, at: Instant) -> io::Result<()> {
        // Zero would stop it.
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let seconds = i64::try_from(wait.as_secs()).unwrap_or(i64::MAX);
        let it_value = Timespec { tv_sec: seconds, tv_nsec: wait.subsec_nanos().into() };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: never, it_value })?;
        Ok(())
    }

    /// It was heard. How often it has rung does not matter; that it has not, since it was set again, neither.
    pub fn heard(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What goes through in a second, asking every millisecond.
    fn through(mut pace: Pace, size: u32, from: Instant) -> u32 {
        let mut ask = |now: Instant| {
            let goes = pace.ready_at().is_none_or(|at| at <= now);
            if goes {
                pace.take(size, now);
            }
            if goes { size } else { 0 }
        };
        (0..1000).map(|millisecond| ask(from + Duration::from_millis(millisecond))).sum()
    }

    #[test]
    fn a_second_lets_through_its_rate_and_the_burst() {
        let now = Instant::now();
        assert_eq!(through(Pace::new(0, now), 1000, now), 1_000_000);
        for (burst, least, most) in [(0, 109_000, 112_000), (50_000, 149_000, 152_000), (1, 99_000, 101_000)] {
            let through = through(Pace::new(100_000, now).with_burst(burst), 1000, now);
            assert!((least..=most).contains(&through), "{burst}: {through}");
        }
        // Values that cannot be meant are no overflow.
        let mut pace = Pace::new(1, now).with_burst(u64::MAX);
        pace.take(u32::MAX, now);
        assert!(pace.ready_at().is_some());
    }
}
