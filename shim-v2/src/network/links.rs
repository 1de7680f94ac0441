//! What is asked of one interface of a namespace (rtnetlink(7)).

use husk_protocol::netlink::{Message, NetlinkError, Socket, attributes, kinds, text};

use super::scan::{UP, is_tap};

/// IFLA_IFNAME, IFLA_MTU, IFLA_TXQLEN, IFLA_AF_SPEC.
const NAME: u16 = 3;
const MTU: u16 = 4;
const QUEUE_LENGTH: u16 = 13;
const FAMILIES: u16 = 26;
/// IFLA_INET6_ADDR_GEN_MODE, and of it IN6_ADDR_GEN_MODE_NONE.
const ADDRESSES: u16 = 8;
const NONE: u8 = 1;
/// AF_INET6.
const INET6: u16 = 10;

/// `struct ifinfomsg` that sets these flags.
pub fn header(index: u32, flags: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    for (place, value) in [(4, index), (8, flags), (12, flags)] {
        fixed[place..place + 4].copy_from_slice(&value.to_ne_bytes());
    }
    fixed
}

/// Whether there is an interface of this number.
pub fn exists(socket: &mut Socket, index: u32) -> bool {
    // Nothing is set: no flag is changed.
    index != 0 && socket.ask(Message::new(kinds::SET_LINK, 0, &header(index, 0))).is_ok()
}

/// The number of an interface.
///
/// # Errors
/// The kernel's answer; there is none of this name.
pub fn number_of(socket: &mut Socket, name: &str) -> Result<u32, NetlinkError> {
    let request = Message::new(kinds::GET_LINK, 0, &[0; 16]);
    let found = socket.dump(
        &request,
        || None,
        |found, _, payload| {
            let Some(all) = payload.get(16..).map(attributes) else { return };
            if all.find(NAME).map(text).as_deref() == Some(name) {
                *found = payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
            }
        },
    );
    found?.ok_or_else(|| NetlinkError::Socket(std::io::ErrorKind::NotFound.into()))
}

/// Brings an interface up.
///
/// # Errors
/// The kernel's answer.
pub fn bring_up(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    socket.ask(Message::new(kinds::SET_LINK, 0, &header(index, UP)))
}

/// Brings a tap up, without an address of its own.
///
/// # Errors
/// The kernel's answer.
pub fn bring_tap_up(socket: &mut Socket, index: u32, mtu: u32) -> Result<(), NetlinkError> {
    // By itself, and before: of one message with both, the kernel takes "up" first, and the tap has an address then.
    let quiet = Message::new(kinds::SET_LINK, 0, &header(index, 0))
        .with_nested(FAMILIES, |families| families.with_nested(INET6, |family| family.with(ADDRESSES, &[NONE])));
    match socket.ask(quiet) {
        // A kernel without IPv6.
        Err(cause) if cause.errno() == Some(libc::EAFNOSUPPORT) => {}
        other => other?,
    }
    socket.ask(Message::new(kinds::SET_LINK, 0, &header(index, UP)).with_number(MTU, mtu))
}

/// Sets how many packets may wait at an interface.
///
/// # Errors
/// The kernel's answer.
pub fn set_queue_length(socket: &mut Socket, index: u32, length: u32) -> Result<(), NetlinkError> {
    socket.ask(Message::new(kinds::SET_LINK, 0, &header(index, 0)).with_number(QUEUE_LENGTH, length))
}

/// Whether there is a tap of husk's with this number: another interface may have it by now.
///
/// # Errors
/// The kernel's answer.
pub fn has_tap(socket: &mut Socket, index: u32) -> Result<bool, NetlinkError> {
    match socket.get(&Message::new(kinds::GET_LINK, 0, &header(index, 0))) {
        Err(cause) if cause.errno() == Some(libc::ENODEV) => Ok(false),
        other => other.map(|found| found.iter().any(|link| is_tap(link))),
    }
}

/// Takes away a tap whose descriptors somebody still has: a VMM that hangs in the kernel. One that is gone, or was none of husk's, is as good.
///
/// # Errors
/// The kernel's answer.
pub fn remove_tap(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    if !has_tap(socket, index)? {
        return Ok(());
    }
    match socket.ask(Message::new(kinds::DELETE_LINK, 0, &header(index, 0))) {
        // It went meanwhile.
        Err(cause) if cause.errno() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}
