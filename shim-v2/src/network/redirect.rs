//! What comes into one interface leaves by another one (tc(8): clsact, matchall, mirred): two of these carry all between an interface
//! of the pod and its tap.

use husk_protocol::netlink::{Message, NetlinkError, Socket, attributes, flags, kinds, text};

/// TC_H_CLSACT: where the queueing discipline hangs.
const CLSACT: u32 = 0xffff_fff1;
/// Its own number: `ffff:`.
const HANDLE: u32 = 0xffff_0000;
/// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS): its filters for what comes in. They are the same for the older `ingress`.
const INGRESS: u32 = 0xffff_fff2;
/// Behind whatever somebody else has put there, which so holds for the pod. (The kernel gives 49152 and less by itself.)
const PRIORITY: u32 = 0xfff0;
/// ETH_P_ALL, in the network's order.
const ALL: u32 = 0x0003_u16.to_be() as u32;
/// TCA_KIND and TCA_OPTIONS.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
/// What takes all packets: its name, what its options begin with, and the number of their actions (TCA_MATCHALL_ACT).
const MATCHALL: Classifier = Classifier { name: "matchall", begin: None, actions: 2 };
/// TCA_ACT_KIND and TCA_ACT_OPTIONS.
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
/// TCA_MIRRED_PARMS.
const MIRRED: u16 = 2;
/// TC_ACT_STOLEN: it is the other interface's now.
const STOLEN: u32 = 4;
/// TCA_EGRESS_REDIR.
const EGRESS_REDIRECT: u32 = 1;

/// What looks at packets (tc(8): a filter's kind).
#[derive(Debug, Clone, Copy)]
struct Classifier {
    name: &'static str,
    begin: Option<(u16, &'static [u8])>,
    actions: u16,
}

#[cfg(not(test))]
const fn classifier() -> Classifier {
    MATCHALL
}

#[cfg(test)]
use tests::classifier;

/// `struct tcmsg`.
fn tcmsg(interface: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut fixed = [0; 20];
    for (place, value) in [(4, interface), (8, handle), (12, parent), (16, info)] {
        fixed[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    fixed
}

/// `struct tc_mirred`.
fn mirred(to: u32) -> Vec<u8> {
    [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to].into_iter().flat_map(u32::to_ne_bytes).collect()
}

/// Where filters for what comes in can be put.
///
/// # Errors
/// The kernel's answer. True: it was made; false: it was there.
pub fn make_place(socket: &mut Socket, interface: u32) -> Result<bool, NetlinkError> {
    let message =
        Message::new(kinds::NEW_QDISC, flags::CREATE | flags::EXCLUSIVE, &tcmsg(interface, HANDLE, CLSACT, 0));
    match socket.ask(message.with_text(KIND, "clsact")) {
        Err(cause) if cause.errno() == Some(libc::EEXIST) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Takes the place away, with what is in it. Gone already is as good.
///
/// # Errors
/// The kernel's answer.
pub fn remove_place(socket: &mut Socket, interface: u32) -> Result<(), NetlinkError> {
    gone(socket.ask(Message::new(kinds::DELETE_QDISC, 0, &tcmsg(interface, HANDLE, CLSACT, 0))))
}

/// Lets all that comes into `from` leave by `to`.
///
/// # Errors
/// The kernel's answer.
pub fn redirect(socket: &mut Socket, from: u32, to: u32) -> Result<(), NetlinkError> {
    let fixed = tcmsg(from, 0, INGRESS, PRIORITY << 16 | ALL);
    let classifier = classifier();
    let message = Message::new(kinds::NEW_FILTER, flags::CREATE | flags::EXCLUSIVE, &fixed)
        .with_text(KIND, classifier.name)
        .with_nested(OPTIONS, |options| {
            let options = match classifier.begin {
                Some((kind, value)) => options.with(kind, value),
                None => options,
            };
            options.with_nested(classifier.actions, |actions| {
                actions.with_nested(1, |action| {
                    action
                        .with_text(ACTION_KIND, "mirred")
                        .with_nested(ACTION_OPTIONS, |options| options.with(MIRRED, &mirred(to)))
                })
            })
        });
    socket.ask(message)
}

/// Takes a redirection back. Gone already is as good.
///
/// # Errors
/// The kernel's answer.
pub fn undo(socket: &mut Socket, from: u32) -> Result<(), NetlinkError> {
    let fixed = tcmsg(from, 0, INGRESS, PRIORITY << 16 | ALL);
    gone(socket.ask(Message::new(kinds::DELETE_FILTER, 0, &fixed).with_text(KIND, classifier().name)))
}

/// Where a redirection of ours leads; none: there is none.
///
/// # Errors
/// The kernel's answer.
pub fn target(socket: &mut Socket, from: u32) -> Result<Option<u32>, NetlinkError> {
    let request = Message::new(kinds::GET_FILTER, 0, &tcmsg(from, 0, INGRESS, 0));
    let found = socket.dump(
        &request,
        || None,
        |found, _, payload| {
            let info = payload.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
            if info.is_some_and(|info| info >> 16 == PRIORITY) {
                *found = found.or_else(|| mirred_to(payload.get(20..)?));
            }
        },
    );
    match found {
        // Nothing is there for filters.
        Err(cause) if matches!(cause.errno(), Some(libc::EINVAL | libc::ENODEV | libc::ENOENT)) => Ok(None),
        other => other,
    }
}

/// Whether anybody has filters there, for what comes in or what leaves.
///
/// # Errors
/// The kernel's answer.
pub fn is_used(socket: &mut Socket, interface: u32) -> Result<bool, NetlinkError> {
    /// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS).
    const EGRESS: u32 = 0xffff_fff3;
    for parent in [INGRESS, EGRESS] {
        let request = Message::new(kinds::GET_FILTER, 0, &tcmsg(interface, 0, parent, 0));
        match socket.dump(&request, || false, |used, _, _| *used = true) {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(cause) => return gone(Err(cause)).map(|()| false),
        }
    }
    Ok(false)
}

/// Whether an event tells that something is gone that a redirection consists of: the place for filters, or a filter at its priority.
#[must_use]
pub fn is_loss(kind: u16, payload: &[u8]) -> bool {
    let number = |at: usize| payload.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
    match kind {
        kinds::DELETE_QDISC => number(12) == Some(CLSACT),
        kinds::DELETE_FILTER => number(16).is_some_and(|info| info >> 16 == PRIORITY),
        _ => false,
    }
}

/// The interface of a filter's mirred.
fn mirred_to(filter: &[u8]) -> Option<u32> {
    let (filter, classifier) = (attributes(filter), classifier());
    if text(filter.find(KIND)?) != classifier.name {
        return None;
    }
    let action = attributes(attributes(attributes(filter.find(OPTIONS)?).find(classifier.actions)?).find(1)?);
    let parameters = attributes(action.find(ACTION_OPTIONS)?).find(MIRRED)?;
    Some(u32::from_ne_bytes(parameters.get(24..28)?.try_into().ok()?))
}

/// What is not there was taken back.
fn gone(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        // ENOENT: no such filter; EINVAL: no place for one; ENODEV: no such interface.
        Err(cause) if matches!(cause.errno(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[path = "redirect_tests.rs"]
pub mod tests;
