//! From what an earlier call has made to what a request wants, for one kind of message.

use std::collections::{HashMap, HashSet};

use husk_protocol::netlink::{Message, NetlinkError, Socket, flags, kinds};

use super::Warnings;
use super::translate::{Entry, INET, INET6, Prefix, RouteKey, key};

/// Passes over what fails: a route needs others to its gateway, whose order is the shim's. Each pass makes at least one more.
const PASSES: usize = 16;
/// Answers that say that what is to be deleted is gone: with its interface, its address, or by somebody else.
const GONE: [i32; 5] = [libc::ESRCH, libc::ENOENT, libc::EADDRNOTAVAIL, libc::ENODEV, libc::ENXIO];

/// The kernel's answer to one message.
type Answer = Result<(), NetlinkError>;

/// A kind of message.
#[derive(Debug)]
pub(super) struct Kind {
    /// For people.
    pub(super) name: &'static str,
    make: u16,
    delete: u16,
    /// For one that is not there: it fails with EEXIST where it is, and nothing has changed.
    exclusive: u16,
}

/// RTM_NEWADDR and RTM_DELADDR.
pub(super) const ADDRESSES: Kind =
    Kind { name: "address", make: kinds::NEW_ADDRESS, delete: kinds::DELETE_ADDRESS, exclusive: flags::EXCLUSIVE };
/// RTM_NEWROUTE and RTM_DELROUTE. There may be several to one destination, in their order.
pub(super) const ROUTES: Kind =
    Kind { name: "route", make: kinds::NEW_ROUTE, delete: kinds::DELETE_ROUTE, exclusive: flags::APPEND };
/// RTM_NEWRULE and RTM_DELRULE.
pub(super) const RULES: Kind =
    Kind { name: "rule", make: kinds::NEW_RULE, delete: kinds::DELETE_RULE, exclusive: flags::EXCLUSIVE };
/// RTM_NEWNEIGH and RTM_DELNEIGH. One that the kernel has found is replaced; one that is the same is no change.
pub(super) const NEIGHBOURS: Kind =
    Kind { name: "neighbour", make: kinds::NEW_NEIGHBOUR, delete: kinds::DELETE_NEIGHBOUR, exclusive: flags::REPLACE };

/// Deletes what was made and is not wanted, makes all that is wanted, and remembers it in `had`.
///
/// All of it, because the kernel takes along what depends on a thing: routes with an address, addresses with an interface that goes
/// down. Deletions and makings go out together: between an old route and its successor is nothing else.
///
/// # Errors
/// The socket's.
pub(super) fn reconcile(
    socket: &mut Socket,
    kind: &Kind,
    had: &mut Vec<Entry>,
    mut wanted: Vec<Entry>,
    warnings: &mut Warnings,
) -> Result<(), NetlinkError> {
    let mut keys = HashSet::new();
    wanted.retain(|entry| keys.insert(entry.key.clone()));
    let (before, mut old): (Vec<Entry>, Vec<Entry>) =
        std::mem::take(had).into_iter().partition(|entry| keys.contains(&entry.key));
    let slots = out_of_order(&before, &wanted);
    let (again, before): (Vec<Entry>, Vec<Entry>) = before.into_iter().partition(|entry| slots.contains(&entry.slot));
    old.extend(again);
    // Until it is known better, for a socket that fails.
    had.extend(before.iter().chain(&old).chain(&wanted).cloned());
    let before: HashMap<&[u8], &[u8]> =
        before.iter().map(|entry| (entry.key.as_slice(), entry.body.as_slice())).collect();

    let mut requests: Vec<_> = old.iter().map(|entry| delete(kind, entry)).collect();
    requests.extend(wanted.iter().map(|entry| make(kind, entry, &before)));
    let mut answers = socket.play(&requests)?.into_iter();
    let mut stay: Vec<Entry> = Vec::new();
    for (entry, answer) in old.into_iter().zip(answers.by_ref()) {
        if let Err(refusal) = answer
            && !refusal.errno().is_some_and(|errno| GONE.contains(&errno))
        {
            warnings.add(format!("{} stays: {refusal}", entry.text));
            stay.push(entry);
        }
    }
    let mut made = vec![false; wanted.len()];
    let mut open: Vec<usize> = (0..wanted.len()).collect();
    let mut refusals = settle(&mut open, answers, &mut made);
    for _ in 1..PASSES {
        if open.is_empty() {
            break;
        }
        let before_pass = open.len();
        let again: Vec<_> = open.iter().map(|at| make(kind, &wanted[*at], &before)).collect();
        let answers = socket.play(&again)?.into_iter();
        refusals = settle(&mut open, answers, &mut made);
        if open.len() == before_pass {
            break;
        }
    }
    for (at, refusal) in open.iter().zip(refusals) {
        let entry = &wanted[*at];
        // What could not be made today may have been made earlier: a route in a table of its own outlives its source address.
        if before.contains_key(entry.key.as_slice()) && stands(socket, kind, entry)? {
            made[*at] = true;
        } else {
            warnings.add(format!("{} is not made: {refusal}", entry.text));
        }
    }
    let made = wanted.into_iter().zip(made).filter_map(|(entry, made)| made.then_some(entry));
    *had = stay.into_iter().chain(made).collect();
    Ok(())
}

/// The slots whose routes would not be in the order that is wanted: the kernel puts what is made behind what there is.
fn out_of_order(before: &[Entry], wanted: &[Entry]) -> HashSet<Vec<u8>> {
    let mut orders: HashMap<&[u8], [Vec<&[u8]>; 2]> = HashMap::new();
    let there: HashSet<&[u8]> = before.iter().map(|entry| entry.key.as_slice()).collect();
    let new = wanted.iter().filter(|entry| !there.contains(entry.key.as_slice()));
    let orders_of = [before.iter().chain(new).collect::<Vec<_>>(), wanted.iter().collect()];
    for (which, entries) in orders_of.into_iter().enumerate() {
        for entry in entries.into_iter().filter(|entry| !entry.slot.is_empty()) {
            orders.entry(&entry.slot).or_default()[which].push(&entry.key);
        }
    }
    let differ = orders.into_iter().filter(|(_, [would_be, wanted])| would_be != wanted);
    differ.map(|(slot, _)| slot.to_vec()).collect()
}

/// Takes what was made, or was there, out of `open`: what is left there has a refusal each.
fn settle(open: &mut Vec<usize>, answers: impl Iterator<Item = Answer>, made: &mut [bool]) -> Vec<NetlinkError> {
    let mut refusals = Vec::new();
    let mut failed = Vec::new();
    for (at, answer) in open.drain(..).zip(answers) {
        match answer {
            Err(refusal) if refusal.errno() != Some(libc::EEXIST) => {
                failed.push(at);
                refusals.push(refusal);
            }
            _ => made[at] = true,
        }
    }
    *open = failed;
    refusals
}

fn delete(kind: &Kind, entry: &Entry) -> Message {
    Message::new(kind.delete, 0, &entry.body)
}

fn make(kind: &Kind, entry: &Entry, before: &HashMap<&[u8], &[u8]>) -> Message {
    // The same with another life time.
    let updated = before.get(entry.key.as_slice()).is_some_and(|body| *body != entry.body);
    let how = if updated { flags::REPLACE } else { kind.exclusive };
    Message::new(kind.make, flags::CREATE | how, &entry.body)
}

/// Whether a route is in the kernel's tables.
fn stands(socket: &mut Socket, kind: &Kind, entry: &Entry) -> Result<bool, NetlinkError> {
    // struct rtmsg.
    let (Some([family, _, _, _, _, protocol, ..]), Ok(wanted)) = (entry.body.first_chunk::<12>(), key(&entry.body))
    else {
        return Ok(false);
    };
    let is_route = kind.make == kinds::NEW_ROUTE;
    Ok(is_route && routes(socket, *family, *protocol)?.iter().any(|route| key(route).is_ok_and(|key| key == wanted)))
}

/// The kernel's routes of a family and of a protocol (RTPROT_...), in all tables.
fn routes(socket: &mut Socket, family: u8, protocol: u8) -> Result<Vec<Vec<u8>>, NetlinkError> {
    // struct rtmsg, with what is asked for.
    let body = [family, 0, 0, 0, 0, protocol, 0, 0, 0, 0, 0, 0];
    socket.get(&Message::new(kinds::GET_ROUTE, flags::DUMP, &body))
}

/// Deletes the routes that the kernel has made to the networks of addresses, and the host has not.
///
/// # Errors
/// The socket's.
pub(super) fn prune(
    socket: &mut Socket,
    networks: &[Prefix],
    wanted: &[Entry],
    warnings: &mut Warnings,
) -> Result<(), NetlinkError> {
    let wanted: Vec<RouteKey> = wanted.iter().filter_map(|route| key(&route.body).ok()).collect();
    let mut extra = Vec::new();
    for family in [INET, INET6] {
        let routes = match routes(socket, family, libc::RTPROT_KERNEL) {
            // IPv6 is switched off.
            Err(cause) if cause.errno() == Some(libc::EOPNOTSUPP) => continue,
            routes => routes?,
        };
        for route in routes {
            let Ok(key) = key(&route) else { continue };
            let of_address = networks.iter().any(|network| {
                key.interface == Some(network.interface) && key.len == network.len && key.network == network.network
            });
            if of_address && !key.is_local() && !wanted.contains(&key) {
                extra.push(route);
            }
        }
    }
    let requests: Vec<_> = extra.iter().map(|route| Message::new(kinds::DELETE_ROUTE, 0, route)).collect();
    for answer in socket.play(&requests)? {
        if let Err(refusal) = answer
            && !refusal.errno().is_some_and(|errno| GONE.contains(&errno))
        {
            warnings.add(format!("a route that the kernel has made with an address stays: {refusal}"));
        }
    }
    Ok(())
}
