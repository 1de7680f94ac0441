//! Limits at made-up times.

use super::*;

const MIB: u32 = 1 << 20;

fn second(from: Instant, milliseconds: u64) -> Instant {
    from + Duration::from_millis(milliseconds)
}

fn reads(bytes: u64, times: u64) -> Rates {
    Rates { read_bytes: bytes, reads: times, ..Rates::default() }
}

/// What goes through in a second, asking every millisecond.
fn through(limits: &Limits, share: u32, way: Way, size: u32, from: Instant) -> u32 {
    let ask = |millisecond| limits.take(share, way, size, second(from, millisecond));
    (0..1000).map(|millisecond| if ask(millisecond) { size } else { 0 }).sum()
}

#[test]
fn a_second_lets_through_what_the_rate_says_and_a_burst() {
    let (limits, now) = (Limits::default(), Instant::now());
    limits.set("a".to_owned(), vec![3], reads(u64::from(MIB), 0), now);
    let got = through(&limits, 3, Way::Read, 4096, now);
    assert!((MIB..=MIB + MIB / 10 + 4096).contains(&got), "{got}");
    let next = through(&limits, 3, Way::Read, 4096, second(now, 1000));
    assert!((MIB - 8192..=MIB + 8192).contains(&next), "the burst is used up: {next}");
    assert_eq!(through(&limits, 3, Way::Write, 4096, now), 4096 * 1000, "the other way has no limit");
    assert_eq!(through(&limits, 4, Way::Read, 4096, now), 4096 * 1000, "nor has another share");
}

#[test]
fn a_request_larger_than_the_rate_takes_its_time_afterwards() {
    let (limits, now) = (Limits::default(), Instant::now());
    limits.set("a".to_owned(), vec![0], reads(1000, 0), now);
    assert!(limits.take(0, Way::Read, 4000, now));
    assert_eq!(limits.ready_at(0, Way::Read), Some(second(now, 3900)));
    assert!(!limits.take(0, Way::Read, 1, second(now, 3899)));
    assert!(limits.take(0, Way::Read, 1, second(now, 3900)));
}

#[test]
fn shares_of_a_limit_have_it_together_and_the_slowest_limit_counts() {
    let (limits, now) = (Limits::default(), Instant::now());
    limits.set("disk".to_owned(), vec![0, 1], reads(0, 10), now);
    limits.set("part".to_owned(), vec![1], reads(0, 5), now);
    let (first, second) = (through(&limits, 0, Way::Read, 1, now), through(&limits, 1, Way::Read, 1, now));
    assert!((10..=12).contains(&first), "{first}");
    assert_eq!(second, 0, "the first share has taken what there was");
    assert!(limits.remove_share(0));
    assert!(!limits.remove_share(7));
    let alone = through(&limits, 1, Way::Read, 1, now + Duration::from_secs(1));
    assert!((5..=6).contains(&alone), "{alone}");
}

#[test]
fn a_changed_limit_counts_from_then_on_and_none_is_none() {
    let (limits, now) = (Limits::default(), Instant::now());
    limits.set("a".to_owned(), vec![0], reads(1, 0), now);
    assert!(limits.take(0, Way::Read, 1000, now));
    limits.set("a".to_owned(), vec![0], reads(1, 100), now);
    assert!(!limits.take(0, Way::Read, 1, now), "the rate that stays keeps what it had");
    limits.set("a".to_owned(), vec![0], reads(1000, 0), now);
    assert!(limits.take(0, Way::Read, 1, now));
    limits.set("a".to_owned(), vec![0], Rates::default(), now);
    assert!(!limits.any() && limits.take(0, Way::Read, MIB, now));
    limits.set("b".to_owned(), vec![0], reads(1, 0), now);
    assert!(limits.remove_share(0) && !limits.any(), "a limit without shares is gone");
}

#[test]
fn absurd_rates_are_no_overflow() {
    let (limits, now) = (Limits::default(), Instant::now());
    limits.set("a".to_owned(), vec![0], reads(1, u64::MAX), now);
    for _ in 0..100 {
        limits.take(0, Way::Read, u32::MAX, now + Duration::from_secs(1 << 40));
    }
    assert!(limits.ready_at(0, Way::Read).is_some_and(|at| at > now));
}
