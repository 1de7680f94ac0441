use std::path::Path;

use super::super::redirect::tests::redirects;
use super::super::tap::Tap;
use super::super::tests::{in_new_namespace, links as all_links, make_veth};
use super::*;

const OWN: &str = "/proc/thread-self/ns/net";

/// A pod's trace in this thread's namespace: an interface with its tap, whose descriptor somebody keeps.
fn pod(socket: &mut Socket) -> Option<(Trace, Tap)> {
    make_veth(socket, "pod", "outside");
    if !redirects(socket) {
        return None;
    }
    let tap = Tap::new(1).unwrap();
    let (interface, number) = (all_links(socket)["pod"], all_links(socket)[&tap.name]);
    redirect::make_place(socket, interface).unwrap();
    redirect::redirect(socket, interface, number).unwrap();
    Some((Trace { interface, place: true, tap: Some(number) }, tap))
}

fn left(traces: &[Trace]) -> Left {
    let identity = identity(open_namespace(Path::new(OWN)).unwrap().as_fd()).unwrap();
    Left::new(OWN.into(), identity, traces)
}

#[test]
fn a_tap_that_a_hanging_machine_keeps_is_removed() {
    in_new_namespace(|socket| {
        let Some((trace, tap)) = pod(socket) else { return };
        let left = left(&[trace]);
        for _ in 0..2 {
            left.take_back().unwrap();
            assert_eq!(redirect::target(socket, trace.interface).unwrap(), None);
            assert!(redirect::make_place(socket, trace.interface).unwrap(), "the place is gone too");
            redirect::remove_place(socket, trace.interface).unwrap();
            assert!(!all_links(socket).contains_key(&tap.name));
        }
    });
}

#[test]
fn what_an_earlier_version_wrote_is_taken_back_without_the_tap() {
    in_new_namespace(|socket| {
        let Some((trace, tap)) = pod(socket) else { return };
        let mut written = serde_json::to_value(left(&[trace])).unwrap();
        assert_eq!(written["taps"], serde_json::json!({ trace.interface.to_string(): trace.tap }));
        written.as_object_mut().unwrap().remove("taps");
        let left: Left = serde_json::from_value(written).unwrap();
        // The tap is there, so it may be another pod's.
        left.take_back().unwrap();
        assert_eq!(redirect::target(socket, trace.interface).unwrap(), trace.tap);
        drop(tap);
        left.take_back().unwrap();
        assert_eq!(redirect::target(socket, trace.interface).unwrap(), None);
    });
}

#[test]
fn what_is_another_ones_stays() {
    in_new_namespace(|socket| {
        let Some((trace, _tap)) = pod(socket) else { return };
        // Another pod has begun with the interface; the number of the tap is that of an interface which only has such a name.
        make_veth(socket, "husk7", "other");
        let other = all_links(socket)["husk7"];
        left(&[Trace { tap: Some(other), ..trace }]).take_back().unwrap();
        assert_eq!(redirect::target(socket, trace.interface).unwrap(), trace.tap);
        assert!(all_links(socket).contains_key("husk7"));
    });
}
