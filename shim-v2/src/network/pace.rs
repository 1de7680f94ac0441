//! How often something is tried again that fails, or that somebody takes away again and again.

use std::time::{Duration, Instant};

/// Rest after an attempt: the first, and the longest. It doubles.
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(64);

/// The attempts at one thing: the first at once, the next after a rest. What has been left alone for the longest rest is new again.
#[derive(Debug, Default)]
pub struct Pace {
    rest: Duration,
    until: Option<Instant>,
}

impl Pace {
    /// When the next attempt may be; none: now.
    pub fn wait(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// An attempt is made.
    pub fn spend(&mut self, now: Instant) {
        if self.until.is_some_and(|until| now > until + MOST) {
            self.rest = Duration::ZERO;
        }
        self.rest = (self.rest * 2).clamp(LEAST, MOST);
        self.until = Some(now + self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_become_rare_and_are_forgotten() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let mut now = begin;
        assert_eq!(pace.wait(now), None);
        let mut attempts = 0;
        while now < begin + Duration::from_secs(3600) {
            pace.spend(now);
            attempts += 1;
            now = pace.wait(now).unwrap();
        }
        // 1, 2, 4, ... 64 s, and each 64 s from then on.
        assert_eq!(attempts, 6 + (3600 - 63) / 64 + 1);
        assert_eq!(pace.wait(now), None);
        let later = now + MOST + Duration::from_secs(1);
        pace.spend(later);
        assert_eq!(pace.wait(later), Some(later + LEAST));
    }
}
