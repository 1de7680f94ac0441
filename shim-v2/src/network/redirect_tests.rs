use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::tap::Tap;
use super::super::tests::{in_new_namespace, links, make_veth, packets, set_up};
use super::*;

/// `matchall`; where this kernel has none, `u32` without anything to match stands in, so that all but the filter's kind can be tried.
pub(super) fn classifier() -> Classifier {
    /// TCA_U32_SEL, TCA_U32_ACT, and a `struct tc_u32_sel` without keys: TC_U32_TERMINAL.
    const U32: Classifier =
        Classifier { name: "u32", begin: Some((5, &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])), actions: 7 };
    static FOUND: OnceLock<Classifier> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let mut found = MATCHALL;
        in_new_namespace(|socket| {
            make_place(socket, 1).unwrap();
            // A filter that does nothing.
            let filter = Message::new(kinds::NEW_FILTER, flags::CREATE, &tcmsg(1, 0, INGRESS, PRIORITY << 16 | ALL));
            if socket.ask(filter.with_text(KIND, MATCHALL.name).with_nested(OPTIONS, |options| options)).is_err() {
                eprintln!("this kernel has no cls_matchall: cls_u32 stands in");
                found = U32;
            }
        });
        found
    })
}

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

/// Whether this kernel can redirect at all; if not, it says so.
pub fn redirects(socket: &mut Socket) -> bool {
    let loopback = 1;
    make_place(socket, loopback).unwrap();
    let tried = redirect(socket, loopback, loopback);
    remove_place(socket, loopback).unwrap();
    match tried {
        Err(cause) if cause.errno() == Some(libc::ENOENT) => {
            eprintln!("skipped: this kernel has no act_mirred, or neither cls_matchall nor cls_u32: {cause}");
            false
        }
        other => other.map(|()| true).unwrap(),
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
        if !redirects(socket) {
            return;
        }
        redirect(socket, pod, tap_index).unwrap();
        redirect(socket, tap_index, pod).unwrap();
        // (What stands in takes another one beside it.)
        if classifier().name == MATCHALL.name {
            assert_eq!(redirect(socket, pod, tap_index).unwrap_err().errno(), Some(libc::EEXIST));
        }
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

#[test]
fn what_takes_a_redirection_away_is_heard_and_what_makes_one_is_not() {
    in_new_namespace(|socket| {
        make_veth(socket, "pod", "outside");
        let pod = links(socket)["pod"];
        if !redirects(socket) {
            return;
        }
        // RTNLGRP_TC.
        let events = Socket::listen(&[4]).unwrap();
        let losses = || {
            let mut losses = 0;
            assert!(!events.events(|kind, payload| losses += usize::from(is_loss(kind, payload))).unwrap());
            losses
        };
        make_place(socket, pod).unwrap();
        redirect(socket, pod, pod).unwrap();
        assert_eq!(losses(), 0);
        undo(socket, pod).unwrap();
        assert_eq!(losses(), 1);
        redirect(socket, pod, pod).unwrap();
        assert_eq!(losses(), 0);
        remove_place(socket, pod).unwrap();
        assert!(losses() > 0);
        // Another one's filter, at another priority.
        make_place(socket, pod).unwrap();
        let fixed = tcmsg(pod, 0, INGRESS, 7 << 16 | ALL);
        let filter = Message::new(kinds::NEW_FILTER, flags::CREATE, &fixed).with_text(KIND, classifier().name);
        let begin = |options: Message| match classifier().begin {
            Some((kind, value)) => options.with(kind, value),
            None => options,
        };
        socket.ask(filter.with_nested(OPTIONS, begin)).unwrap();
        socket.ask(Message::new(kinds::DELETE_FILTER, 0, &fixed).with_text(KIND, classifier().name)).unwrap();
        assert_eq!(losses(), 0);
    });
}
