//! Limits at made-up times.

use std::time::Duration;

use husk_protocol::control::Rates;

use super::*;

const MIB: u32 = 1 << 20;

fn after(from: Instant, milliseconds: u64) -> Instant {
    from + Duration::from_millis(milliseconds)
}

fn reads(bytes: u64, times: u64) -> Rates {
    Rates { read_bytes: bytes, reads: times, ..Rates::default() }
}

/// A file of a share.
fn of(share: u32) -> Shared {
    Shared { number: share, exclusive: false, device: 8 }
}

fn set(limits: &Limits, name: &str, rates: Rates, now: Instant) {
    limits.set(control::Limit { owner: "c".to_owned(), name: name.to_owned(), rates }, now);
}

/// A limit of all files of these shares.
fn limit(limits: &Limits, name: &str, shares: &[u32], rates: Rates, now: Instant) {
    set(limits, name, rates, now);
    for share in shares {
        assert!(limits.add(&("c".to_owned(), name.to_owned()), *share, LimitedFiles::AllBut(Vec::new())));
    }
}

/// What goes through in a second, asking every millisecond.
fn through(limits: &Limits, file: Shared, way: Way, size: u32, from: Instant) -> u32 {
    let ask = |millisecond| limits.take(file, way, size, after(from, millisecond));
    (0..1000).map(|millisecond| if ask(millisecond) { size } else { 0 }).sum()
}

#[test]
fn a_second_lets_through_what_the_rate_says_and_a_burst() {
    let (limits, now) = (Limits::default(), Instant::now());
    limit(&limits, "a", &[3], reads(u64::from(MIB), 0), now);
    let got = through(&limits, of(3), Way::Read, 4096, now);
    assert!((MIB..=MIB + MIB / 10 + 4096).contains(&got), "{got}");
    let next = through(&limits, of(3), Way::Read, 4096, after(now, 1000));
    assert!((MIB - 8192..=MIB + 8192).contains(&next), "the burst is used up: {next}");
    assert_eq!(through(&limits, of(3), Way::Write, 4096, now), 4096 * 1000, "the other way has no limit");
    assert_eq!(through(&limits, of(4), Way::Read, 4096, now), 4096 * 1000, "nor has another share");
}

#[test]
fn a_request_larger_than_the_rate_takes_its_time_afterwards() {
    let (limits, now) = (Limits::default(), Instant::now());
    limit(&limits, "a", &[0], reads(1000, 0), now);
    assert!(limits.take(of(0), Way::Read, 4000, now));
    assert_eq!(limits.ready_at(of(0), Way::Read), Some(after(now, 3900)));
    assert!(!limits.take(of(0), Way::Read, 1, after(now, 3899)));
    assert!(limits.take(of(0), Way::Read, 1, after(now, 3900)));
}

#[test]
fn shares_of_a_limit_have_it_together_and_the_slowest_limit_counts() {
    let (limits, now) = (Limits::default(), Instant::now());
    limit(&limits, "disk", &[0, 1], reads(0, 10), now);
    limit(&limits, "part", &[1], reads(0, 5), now);
    let (first, second) = (through(&limits, of(0), Way::Read, 1, now), through(&limits, of(1), Way::Read, 1, now));
    assert!((10..=12).contains(&first), "{first}");
    assert_eq!(second, 0, "the first share has taken what there was");
    assert!(limits.remove_share(0));
    let alone = through(&limits, of(1), Way::Read, 1, after(now, 1000));
    assert!((5..=6).contains(&alone), "{alone}");
}

#[test]
fn files_are_told_apart_by_their_file_systems() {
    let (limits, now) = (Limits::default(), Instant::now());
    set(&limits, "a", reads(0, 1), now);
    let named = ("c".to_owned(), "a".to_owned());
    assert!(limits.add(&named, 0, LimitedFiles::AllBut(vec![7])));
    assert!(limits.add(&named, 1, LimitedFiles::Only(vec![7])));
    let on = |number, device| Shared { number, exclusive: false, device };
    for (file, limited) in [(on(0, 8), true), (on(0, 7), false), (on(1, 7), true), (on(1, 8), false)] {
        assert_eq!(limits.ready_at(file, Way::Read).is_some(), limited, "{file:?}");
    }
    assert!(!limits.add(&("c".to_owned(), "b".to_owned()), 0, LimitedFiles::Only(Vec::new())));
}

#[test]
fn a_changed_limit_counts_from_then_on_and_none_is_none() {
    let (limits, now) = (Limits::default(), Instant::now());
    limit(&limits, "a", &[0], reads(1, 0), now);
    assert!(limits.take(of(0), Way::Read, 1000, now));
    set(&limits, "a", reads(1, 100), now);
    assert!(!limits.take(of(0), Way::Read, 1, now), "the rate that stays keeps what it had");
    set(&limits, "a", reads(1000, 0), now);
    assert!(limits.take(of(0), Way::Read, 1, now));
    set(&limits, "a", Rates::default(), now);
    assert!(limits.take(of(0), Way::Read, MIB, now) && limits.take(of(0), Way::Read, MIB, now));
    limits.remove("d");
    assert!(limits.any());
    limits.remove("c");
    assert!(!limits.any());
    limit(&limits, "b", &[0], reads(1, 0), now);
    assert!(limits.remove_share(0) && !limits.any(), "a limit without shares is gone");
}

#[test]
fn absurd_rates_are_no_overflow() {
    let (limits, now) = (Limits::default(), Instant::now());
    limits.make_timer().unwrap();
    limit(&limits, "a", &[0], reads(1, u64::MAX), now);
    for _ in 0..100 {
        limits.take(of(0), Way::Read, u32::MAX, now + Duration::from_secs(1 << 40));
    }
    let at = limits.ready_at(of(0), Way::Read).unwrap();
    assert!(at > now);
    limits.ring_at(at).unwrap();
}
