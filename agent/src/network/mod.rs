//! The guest's network: what the pod's network namespace on the host is. The shim says the whole of it each time.
//!
//! [`devices`] are where interfaces come from, `links.rs` makes them what the host's are, `translate/` turns the host's messages into
//! the guest's, `reconcile.rs` plays them ([`husk_protocol::netlink`] is the socket). Only what an earlier call has made is taken away: what
//! containers make themselves stays. What stands already is not made again, and nobody is told of a change then.

mod channels;
pub mod devices;
mod links;
mod reconcile;
mod translate;

use husk_protocol::agent::SetNetworkRequest;
use husk_protocol::netlink::{Malformed, NetlinkError, Socket};
use log::warn;

use self::devices::Devices;
use self::links::{Link, Spec};
use self::reconcile::{ADDRESSES, Kind, NEIGHBOURS, ROUTES, RULES, prune, reconcile};
use self::translate::{Entry, Indices, Unfit};

/// Warnings in one answer, which has a longest length (agent.proto).
const WARNINGS: usize = 64;

/// Why the network cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A message of the shim's is none.
    #[error("{what} {number} of the request: {cause}")]
    Message {
        /// Of which list.
        what: &'static str,
        /// Which, from 0.
        number: usize,
        /// What is wrong.
        cause: Malformed,
    },
    /// An interface that cannot be.
    #[error("interface {name:?}: {why}")]
    Invalid {
        /// As it was said.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// An interface that is not to be had.
    #[error("interface {name} (virtio-mmio.{window}): cannot {what}: {cause}")]
    Interface {
        /// Its name on the host.
        name: String,
        /// Its window.
        window: u32,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        cause: String,
    },
    /// rtnetlink as a whole.
    #[error("cannot {what} (rtnetlink): {cause}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// Its answer.
        cause: NetlinkError,
    },
}

/// What could not be made as it is on the host.
#[derive(Debug, Default)]
struct Warnings {
    list: Vec<String>,
    more: usize,
}

impl Warnings {
    fn add(&mut self, warning: String) {
        if self.list.len() < WARNINGS { self.list.push(warning) } else { self.more += 1 }
    }

    fn into_list(mut self) -> Vec<String> {
        if self.more > 0 {
            self.list.push(format!("and {} more", self.more));
        }
        self.list
    }
}

/// An interface of an earlier call.
#[derive(Debug)]
struct Known {
    host: u32,
    window: u32,
    /// The guest's number.
    guest: u32,
    /// It has been what the host's is.
    made: bool,
}

/// What the calls so far have made.
#[derive(Debug, Default)]
pub struct Network {
    interfaces: Vec<Known>,
    addresses: Vec<Entry>,
    routes: Vec<Entry>,
    rules: Vec<Entry>,
    neighbours: Vec<Entry>,
}

/// The messages of a request for this guest.
#[derive(Debug)]
struct Wanted {
    addresses: Vec<Entry>,
    routes: Vec<Entry>,
    rules: Vec<Entry>,
    neighbours: Vec<Entry>,
}

impl Wanted {
    fn of(request: &SetNetworkRequest, indices: &Indices, warnings: &mut Warnings) -> Result<Self, NetworkError> {
        let one = |entry| vec![entry];
        Ok(Self {
            addresses: entries(&ADDRESSES, &request.addresses, warnings, |m| translate::address(m, indices).map(one))?,
            routes: entries(&ROUTES, &request.routes, warnings, |message| translate::route(message, indices))?,
            rules: entries(&RULES, &request.rules, warnings, |message| translate::rule(message).map(one))?,
            neighbours: entries(&NEIGHBOURS, &request.neighbours, warnings, |m| {
                translate::neighbour(m, indices).map(one)
            })?,
        })
    }
}

/// The messages of one list.
fn entries(
    kind: &Kind,
    messages: &[Vec<u8>],
    warnings: &mut Warnings,
    translate: impl Fn(&[u8]) -> Result<Vec<Entry>, Unfit>,
) -> Result<Vec<Entry>, NetworkError> {
    let mut entries: Vec<Entry> = Vec::with_capacity(messages.len());
    for (number, message) in messages.iter().enumerate() {
        match translate(message) {
            Ok(of_message) => entries.extend(of_message),
            Err(Unfit::Own) => {}
            Err(Unfit::Malformed(cause)) => return Err(NetworkError::Message { what: kind.name, number, cause }),
            Err(unfit) => warnings.add(format!("{} {number} of the request is left out: {unfit}", kind.name)),
        }
    }
    Ok(entries)
}

impl Network {
    /// Makes the guest's network what the request says. What could not be made is told in words.
    ///
    /// # Errors
    /// The request is malformed, and nothing was done; an interface cannot be made.
    pub async fn set<D: Devices>(
        &mut self,
        request: &SetNetworkRequest,
        devices: &D,
    ) -> Result<Vec<String>, NetworkError> {
        let specs = Spec::all(&request.interfaces)?;
        // What is malformed is found before anything is done; the guest's numbers are known only when its interfaces are.
        let numbers = specs.iter().map(|spec| (spec.host, spec.host, spec.name.clone()));
        Wanted::of(request, &Indices::new(numbers), &mut Warnings::default())?;

        let mut warnings = Warnings::default();
        self.release(&specs, devices, &mut warnings).await;
        let kernel = |what| move |cause| NetworkError::Kernel { what, cause };
        let mut socket = Socket::open().map_err(kernel("open a socket"))?;
        self.make_interfaces(&mut socket, &specs, devices, &mut warnings)?;
        let numbers =
            self.interfaces.iter().zip(&specs).map(|(known, spec)| (spec.host, known.guest, spec.name.clone()));
        let wanted = Wanted::of(request, &Indices::new(numbers), &mut warnings)?;

        let networks: Vec<_> = wanted.addresses.iter().flat_map(translate::prefixes).collect();
        reconcile(&mut socket, &ADDRESSES, &mut self.addresses, wanted.addresses, &mut warnings)
            .map_err(kernel("set the addresses"))?;
        prune(&mut socket, &networks, &wanted.routes, &mut warnings).map_err(kernel("read the routes"))?;
        reconcile(&mut socket, &ROUTES, &mut self.routes, wanted.routes, &mut warnings)
            .map_err(kernel("set the routes"))?;
        reconcile(&mut socket, &NEIGHBOURS, &mut self.neighbours, wanted.neighbours, &mut warnings)
            .map_err(kernel("set the neighbours"))?;
        reconcile(&mut socket, &RULES, &mut self.rules, wanted.rules, &mut warnings)
            .map_err(kernel("set the rules"))?;
        Ok(warnings.into_list())
    }

    /// More CPUs are online: the interfaces use more of their queues.
    pub fn has_more_cpus(&self) {
        for known in &self.interfaces {
            if let Err(cause) = channels::use_all(known.guest) {
                warn!("the interface {} of the guest does not use all of its queues: {cause}", known.guest);
            }
        }
    }

    /// Takes away interfaces that are not among `specs`, or are the device of another one there.
    async fn release<D: Devices>(&mut self, specs: &[Spec], devices: &D, warnings: &mut Warnings) {
        let mut stay = Vec::with_capacity(self.interfaces.len());
        for known in self.interfaces.drain(..) {
            let same = |spec: &Spec| spec.host == known.host && spec.window == known.window;
            if specs.iter().any(same) {
                stay.push(known);
            } else if let Err(cause) = devices.release(known.window).await {
                warnings.add(format!("an interface that is gone on the host stays: {cause}"));
                stay.push(known);
            }
        }
        self.interfaces = stay;
    }

    /// Finds and makes the interfaces, in the order of `specs`; those that should be gone come behind.
    fn make_interfaces<D: Devices>(
        &mut self,
        socket: &mut Socket,
        specs: &[Spec],
        devices: &D,
        warnings: &mut Warnings,
    ) -> Result<(), NetworkError> {
        let mut links = Vec::with_capacity(specs.len());
        for (at, spec) in specs.iter().enumerate() {
            let guest = devices.find(spec.window).map_err(|cause| spec.failed("find it", cause))?;
            // Kept at once: what fails from here on is taken away, or made again, by a later call.
            match self.interfaces.iter().position(|known| known.host == spec.host && known.window == spec.window) {
                Some(place) => self.interfaces.swap(at, place),
                None => {
                    let known = Known { host: spec.host, window: spec.window, guest, made: false };
                    self.interfaces.insert(at, known);
                }
            }
            let known = &mut self.interfaces[at];
            known.made &= known.guest == guest;
            known.guest = guest;
            links.push(Link::read(socket, guest).map_err(|cause| spec.failed("read what it is", cause))?);
        }
        links::name_all(socket, &mut links, specs)?;
        for ((known, link), spec) in self.interfaces.iter_mut().zip(&links).zip(specs) {
            link.shape(socket, spec, !known.made, warnings)?;
            if !known.made
                && let Err(cause) = channels::use_all(known.guest)
            {
                warnings.add(format!("{}: it does not use all of its queues: {cause}", spec.name));
            }
            known.made = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
