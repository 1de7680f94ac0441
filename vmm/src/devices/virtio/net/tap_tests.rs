use std::fs::File;

use super::super::namespace::{FLAGS, in_namespace, ip, open_tap};
use super::*;

#[test]
fn only_queues_of_one_tap_with_headers_are_taken() {
    in_namespace(|| {
        let refused = |fds: Vec<OwnedFd>, why: &str| {
            let error = Tap::open(fds).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refused(vec![File::open("/dev/null").unwrap().into()], "descriptor 0 is not attached to a tap");
        refused(vec![File::open("/dev/net/tun").unwrap().into()], "descriptor 0 is not attached to a tap");
        refused(vec![open_tap("t0", FLAGS & !libc::IFF_VNET_HDR).unwrap()], "\"t0\" was made with flags");
        refused(vec![open_tap("t1", libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR).unwrap()], "IFF_TAP");
        let several = FLAGS | libc::IFF_MULTI_QUEUE;
        refused(vec![open_tap("t2", several).unwrap(), open_tap("t3", several).unwrap()], "\"t2\" and \"t3\"");
        let twice = vec![open_tap("t4", FLAGS).unwrap(), open_tap("t5", FLAGS).unwrap()];
        refused(twice, "IFF_MULTI_QUEUE");
    });
}

#[test]
fn one_queue_gets_packets_at_first() {
    in_namespace(|| {
        let several = FLAGS | libc::IFF_MULTI_QUEUE;
        let (mut taps, uso) = Tap::open((0..3).map(|_| open_tap("t0", several).unwrap()).collect()).unwrap();
        assert!(uso, "since Linux 6.2");
        assert_eq!(taps.iter().map(Tap::attached).collect::<Vec<_>>(), [true, false, false]);
        // They do not wait for a packet.
        let read = |tap: &Tap| rustix::io::read(tap, &mut [0; 2000]).unwrap_err();
        assert_eq!(Failed::reading(&read(&taps[0]).into()), Failed::WouldBlock);
        taps[1].attach(true).unwrap();
        assert_eq!(Failed::reading(&read(&taps[1]).into()), Failed::WouldBlock);
        taps[1].attach(false).unwrap();
        taps[0].set_offloads(super::super::features::of_tap(u64::MAX)).unwrap();
        ip(&["link", "del", "t0"]);
        assert_eq!(Failed::reading(&read(&taps[0]).into()), Failed::Gone);
        assert_eq!(Failed::writing(&taps[0].set_offloads(0).unwrap_err()), Failed::Gone);
    });
}
