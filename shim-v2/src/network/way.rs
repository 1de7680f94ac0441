//! The way between an interface and its tap: a redirection from each to the other.

use husk_protocol::netlink::{NetlinkError, Socket};

use super::scan::Interface;
use super::{NetworkError, links, redirect};

/// How the way is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// As it was made.
    Whole,
    /// Filters are missing: somebody has removed them, or the interface was made anew with its old number.
    Bare,
    /// The tap was deleted.
    Lost,
}

/// What is left of the way between an interface and its tap.
///
/// # Errors
/// The kernel's answer.
pub fn stand(socket: &mut Socket, interface: &Interface, tap: u32) -> Result<Stand, NetworkError> {
    let index = interface.index;
    let mut look = || {
        // Of an interface or a tap that is gone, none is found.
        let mut leads = |from, to| Ok::<_, NetlinkError>(redirect::target(socket, from)? == Some(to));
        if leads(tap, index)? && leads(index, tap)? {
            return Ok(Stand::Whole);
        }
        Ok(if links::has_tap(socket, tap)? { Stand::Bare } else { Stand::Lost })
    };
    look().map_err(interface.failed("look at the filters of"))
}

/// No other machine has the interface. What leads to a tap that is gone, of a pod whose end nobody has seen, is taken away.
///
/// # Errors
/// Another has; the kernel's answer.
pub fn is_free(socket: &mut Socket, interface: &Interface, own: Option<u32>) -> Result<(), NetworkError> {
    match redirect::target(socket, interface.index).map_err(interface.failed("look at the filters of"))? {
        Some(tap) if Some(tap) == own => Ok(()),
        Some(tap) if links::exists(socket, tap) => Err(NetworkError::Taken(interface.name.clone())),
        Some(_) => redirect::undo(socket, interface.index).map_err(interface.failed("take back an old redirection of")),
        None => Ok(()),
    }
}

/// Makes places for the filters. True: the interface had none.
///
/// # Errors
/// Another machine has the interface; the kernel's answer.
pub fn make_places(socket: &mut Socket, interface: &Interface, tap: u32) -> Result<bool, NetworkError> {
    is_free(socket, interface, Some(tap))?;
    redirect::make_place(socket, tap).map_err(interface.failed("put filters on the tap of"))?;
    let place = redirect::make_place(socket, interface.index).map_err(interface.failed("put filters on"))?;
    if place && interface.queue_length == 0 {
        // The kernel takes it for a mistake where a queueing discipline comes, and gives the interface a queue (net/sched/sch_api.c).
        links::set_queue_length(socket, interface.index, 0).map_err(interface.failed("take back the queue of"))?;
    }
    Ok(place)
}

/// Redirects both ways; what is there already stays.
///
/// # Errors
/// The kernel's answer.
pub fn redirect(socket: &mut Socket, interface: &Interface, tap: u32) -> Result<(), NetworkError> {
    let index = interface.index;
    for (from, to, what) in [(index, tap, "redirect what comes into"), (tap, index, "redirect what is to leave by")] {
        match redirect::target(socket, from).map_err(interface.failed("look at the filters of"))? {
            Some(target) if target == to => continue,
            Some(_) => redirect::undo(socket, from).map_err(interface.failed("mend the filters of"))?,
            None => {}
        }
        redirect::redirect(socket, from, to).map_err(interface.failed(what))?;
    }
    Ok(())
}
