//! What the tests of the network have in common: namespaces of their own, and what is in them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use husk_protocol::netlink::{Message, Socket, attributes, flags, kinds, text};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `test` in a network namespace of its own, with a socket in it. Without the right to make one, it says so.
pub fn in_new_namespace(test: impl FnOnce(&mut Socket) + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: no descriptor table is unshared.
            if let Err(cause) = unsafe { unshare_unsafe(UnshareFlags::NEWNET) } {
                eprintln!("skipped: no network namespace can be made here: {cause}");
                return;
            }
            test(&mut Socket::open().unwrap());
        });
        thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause));
    });
}

/// Two interfaces that are the two ends of a wire.
pub fn make_veth(socket: &mut Socket, one: &str, other: &str) {
    make_veth_at(socket, 0, one, other);
}

/// The same, where the first has this number.
pub fn make_veth_at(socket: &mut Socket, index: u32, one: &str, other: &str) {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let message = Message::new(kinds::NEW_LINK, flags::CREATE | flags::EXCLUSIVE, &fixed)
        .with_text(3, one)
        .with_nested(18, |info| {
            // IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER with a `struct ifinfomsg`.
            info.with_text(1, "veth")
                .with_nested(2, |data| data.with_nested(1, |peer| peer.fixed(&[0; 16]).with_text(3, other)))
        });
    socket.ask(message).unwrap();
}

/// The numbers of all interfaces.
pub fn links(socket: &mut Socket) -> BTreeMap<String, u32> {
    let request = Message::new(kinds::GET_LINK, 0, &[0; 16]);
    let listed = socket.dump(&request, BTreeMap::new, |links, _, payload| {
        let name = text(attributes(&payload[16..]).find(3).unwrap());
        links.insert(name, u32::from_ne_bytes(payload[4..8].try_into().unwrap()));
    });
    listed.unwrap()
}

/// Brings an interface up.
pub fn set_up(socket: &mut Socket, index: u32) {
    super::links::bring_up(socket, index).unwrap();
}

/// All that passes an interface, packet(7).
pub fn packets(index: u32) -> File {
    // SAFETY: takes numbers; the address is initialised, of the length that is said, and only read.
    unsafe {
        let all = 3_u16.to_be(); // ETH_P_ALL
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all));
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let file = File::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = all;
        address.sll_ifindex = i32::try_from(index).unwrap();
        let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        assert_eq!(libc::bind(file.as_raw_fd(), (&raw const address).cast(), length), 0);
        file
    }
}
