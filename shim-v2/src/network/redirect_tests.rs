use std::io::{Read, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::tap::Tap;
use super::super::tests::{in_new_namespace, links, make_veth, packets, set_up};
use super::*;

/// A broadcast of nobody's protocol, behind a header for the tap.
const FRAME: [u8; 60] = {
    let mut frame = [0xff; 60];
    // ETH_P_802_EX1: for experiments.
    frame[12] = 0x88;
    frame[13] = 0xb5;
    frame
};
/// `struct virtio_net_hdr`.
const HEADER: usize = 10;

/// Waits for a packet with our protocol, and returns it.
fn next(fd: impl AsFd, skip: usize) -> Option<Vec<u8>> {
    let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
    loop {
        if poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).unwrap() == 0 {
            return None;
        }
        let mut buffer = [0; 2048];
        let length = rustix::io::read(&fd, &mut buffer).unwrap();
        let frame = &buffer[skip.min(length)..length];
        if frame.get(12..14) == Some(&FRAME[12..14]) {
            return Some(frame.to_vec());
        }
    }
}

#[test]
fn what_comes_in_here_leaves_there_until_it_is_taken_back() {
    in_new_namespace(|socket| {
        make_veth(socket, "pod", "outside");
        let tap = Tap::new(1).unwrap();
        let links = links(socket);
        let [pod, outside, tap_index] = ["pod", "outside", &tap.name].map(|name| links[name]);
        [pod, outside, tap_index].into_iter().for_each(|index| set_up(socket, index));
        assert_eq!(target(socket, pod).unwrap(), None, "there is not even a place");
        assert!(make_place(socket, pod).unwrap() && make_place(socket, tap_index).unwrap());
        assert!(!make_place(socket, pod).unwrap(), "it was there");
        assert_eq!(target(socket, pod).unwrap(), None);
        assert!(!is_used(socket, pod).unwrap());
        match redirect(socket, pod, tap_index) {
            Err(cause) if cause.errno() == Some(libc::ENOENT) => {
                eprintln!("skipped: this kernel has no cls_matchall or no act_mirred: {cause}");
                return;
            }
            other => other.unwrap(),
        }
        redirect(socket, tap_index, pod).unwrap();
        assert_eq!(redirect(socket, pod, tap_index).unwrap_err().errno(), Some(libc::EEXIST));
        assert_eq!(target(socket, pod).unwrap(), Some(tap_index));
        assert_eq!(target(socket, tap_index).unwrap(), Some(pod));
        assert!(is_used(socket, pod).unwrap());

        let mut wire = packets(outside);
        let mut queue = std::fs::File::from(tap.queues.into_iter().next().unwrap());
        wire.write_all(&FRAME).unwrap();
        assert_eq!(next(&queue, HEADER).unwrap(), FRAME, "from outside to the tap");
        let mut sent = vec![0; HEADER];
        sent.extend(FRAME);
        queue.write_all(&sent).unwrap();
        assert_eq!(next(&wire, 0).unwrap(), FRAME, "from the tap to outside");

        undo(socket, pod).unwrap();
        undo(socket, pod).unwrap();
        assert_eq!(target(socket, pod).unwrap(), None);
        wire.write_all(&FRAME).unwrap();
        let mut buffer = [0; 2048];
        while let Ok(length) = queue.read(&mut buffer) {
            assert_ne!(buffer.get(HEADER + 12..HEADER + 14), Some(&FRAME[12..14]), "{length} bytes");
        }
        remove_place(socket, pod).unwrap();
        remove_place(socket, pod).unwrap();
        // A tap that is gone has taken its own along, and the other end leads nowhere.
        make_place(socket, pod).unwrap();
        redirect(socket, pod, tap_index).unwrap();
        drop(queue);
        assert_ne!(target(socket, pod).unwrap(), Some(tap_index));
        for nobody in [pod + 1000, tap_index] {
            undo(socket, nobody).unwrap();
            remove_place(socket, nobody).unwrap();
            assert_eq!(target(socket, nobody).unwrap(), None);
        }
    });
}
