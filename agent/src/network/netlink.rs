//! A socket of rtnetlink(7) on which nothing waits: the kernel has answered when a message has been sent.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recvfrom, send, socket_with};

use super::attributes::attributes;

/// struct nlmsghdr: length, type, flags, sequence, port.
const HEADER: usize = 16;
/// Messages that are sent at once: their answers must fit into the socket's buffer (net.core.rmem_default, 208 KiB, by the
/// kernel's count of at least 1 KiB each).
const BATCH: usize = 32;
/// Bytes that are received at once: twice what the kernel puts into a part of a dump.
const RECEIVE: usize = 64 << 10;
/// How often a list is read again that changed meanwhile (NLM_F_DUMP_INTR).
const ATTEMPTS: usize = 4;
/// Kind of the attribute with the kernel's words (NLMSGERR_ATTR_MSG).
const WORDS: u16 = 1;

/// A message to the kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    /// RTM_...
    pub(super) kind: u16,
    /// NLM_F_..., beside NLM_F_REQUEST and NLM_F_ACK.
    pub(super) flags: i32,
    /// Behind the header.
    pub(super) body: &'a [u8],
}

/// The kernel's no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Positive.
    pub(super) errno: i32,
    /// Its words (extended acknowledgement), if it has any.
    pub(super) words: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        io::Error::from_raw_os_error(self.errno).fmt(f)?;
        if self.words.is_empty() { Ok(()) } else { write!(f, ": {}", self.words) }
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::from_raw_os_error(refusal.errno)
    }
}

/// The kernel's answer to one message.
pub(super) type Answer = Result<(), Refusal>;

/// The socket.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One message of the kernel's.
struct Received<'a> {
    kind: i32,
    flags: i32,
    sequence: u32,
    body: &'a [u8],
}

impl Socket {
    /// Opens it, in this thread's network namespace.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn open() -> io::Result<Self> {
        // NETLINK_ROUTE is 0, the family's default.
        let descriptor = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        // Answers without the message itself, with words; lists by what is asked for (linux/netlink.h).
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK, libc::NETLINK_GET_STRICT_CHK] {
            set_option(&descriptor, option)?;
        }
        Ok(Self { descriptor, sequence: 0, buffer: vec![0; RECEIVE] })
    }

    /// Sends messages, and gives the kernel's answer to each.
    ///
    /// # Errors
    /// The kernel takes none, or does not answer.
    pub(super) fn play(&mut self, requests: &[Request<'_>]) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(requests.len());
        for batch in requests.chunks(BATCH) {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            for request in batch {
                self.write(request, libc::NLM_F_ACK, &mut bytes);
            }
            send(&self.descriptor, &bytes, SendFlags::empty())?;
            let mut open = batch.len();
            let mut given = vec![None; batch.len()];
            while open > 0 {
                self.receive(|message| {
                    let number = usize::try_from(message.sequence.wrapping_sub(first)).ok();
                    let place = number.and_then(|number| given.get_mut(number)).filter(|place| place.is_none());
                    if let (libc::NLMSG_ERROR, Some(place)) = (message.kind, place) {
                        *place = Some(answer(&message));
                        open -= 1;
                    }
                })?;
            }
            answers.extend(given.into_iter().flatten());
        }
        Ok(answers)
    }

    /// Sends one message.
    ///
    /// # Errors
    /// As [`Self::play`].
    pub(super) fn play_one(&mut self, request: Request<'_>) -> io::Result<Answer> {
        // There is one answer to each.
        Ok(self.play(&[request])?.pop().unwrap_or(Ok(())))
    }

    /// Asks for something: the bodies of what the kernel sends.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(super) fn ask(&mut self, request: Request<'_>) -> io::Result<Vec<Vec<u8>>> {
        for _ in 0..ATTEMPTS {
            let mut bytes = Vec::new();
            self.write(&request, libc::NLM_F_ACK, &mut bytes);
            send(&self.descriptor, &bytes, SendFlags::empty())?;
            let sequence = self.sequence;
            let mut bodies = Vec::new();
            let mut changed = false;
            let mut end = None;
            while end.is_none() {
                self.receive(|message| {
                    if message.sequence != sequence {
                        return;
                    }
                    changed |= message.flags & libc::NLM_F_DUMP_INTR != 0;
                    match message.kind {
                        libc::NLMSG_ERROR | libc::NLMSG_DONE => end = Some(answer(&message)),
                        _ => bodies.push(message.body.to_vec()),
                    }
                })?;
            }
            if let Some(Err(refusal)) = end {
                return Err(refusal.into());
            }
            if !changed {
                return Ok(bodies);
            }
        }
        Err(io::Error::other("what was asked for changes all the time"))
    }

    fn write(&mut self, request: &Request<'_>, flags: i32, to: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        // Fit: a message is one of a request's, and flags are bits of 16.
        let len = u32::try_from(HEADER + request.body.len()).unwrap_or(u32::MAX);
        let flags = u16::try_from(libc::NLM_F_REQUEST | flags | request.flags).unwrap_or(0);
        to.extend_from_slice(&len.to_ne_bytes());
        to.extend_from_slice(&request.kind.to_ne_bytes());
        to.extend_from_slice(&flags.to_ne_bytes());
        to.extend_from_slice(&self.sequence.to_ne_bytes());
        to.extend_from_slice(&[0; 4]);
        to.extend_from_slice(request.body);
        to.resize(to.len().next_multiple_of(4), 0);
    }

    /// Receives once: everything is there already, and the next part of a list is made by asking.
    fn receive(&mut self, mut take: impl FnMut(Received<'_>)) -> io::Result<()> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let (len, whole, from) = recvfrom(&self.descriptor, &mut self.buffer[..], flags)?;
        let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
        // A container may send to this socket too, if it may do everything with the network.
        if from.is_none_or(|from| from.pid() != 0) {
            return Ok(());
        }
        if whole > len {
            return Err(io::Error::other(format!("the kernel's message has {whole} bytes")));
        }
        let mut rest = self.buffer.get(..len).unwrap_or_default();
        while let Some((message, after)) = split(rest) {
            take(message);
            rest = after;
        }
        Ok(())
    }
}

/// The first of the kernel's messages, and what is behind it.
fn split(bytes: &[u8]) -> Option<(Received<'_>, &[u8])> {
    let (header, _) = bytes.split_first_chunk::<HEADER>()?;
    let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
    let len = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
    let received = Received {
        kind: u16::from_ne_bytes([k0, k1]).into(),
        flags: u16::from_ne_bytes([f0, f1]).into(),
        sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
        body: bytes.get(HEADER..len)?,
    };
    Some((received, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// What an NLMSG_ERROR says (struct nlmsgerr: a number, the header of what it answers, then attributes), or an NLMSG_DONE.
fn answer(message: &Received<'_>) -> Answer {
    let errno = message.body.first_chunk().map_or(0, |errno| i32::from_ne_bytes(*errno)).saturating_neg();
    if errno == 0 {
        return Ok(());
    }
    let attributes = message.body.get(4 + HEADER..).filter(|_| message.kind == libc::NLMSG_ERROR).map(attributes);
    let words = match attributes {
        Some(Ok(list)) => list.iter().find(|attribute| attribute.kind() == WORDS).map(|words| words.value),
        _ => None,
    };
    let words = String::from_utf8_lossy(words.unwrap_or_default()).trim_end_matches('\0').to_owned();
    Err(Refusal { errno, words })
}

fn set_option(socket: &impl AsFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // Fits: four bytes.
    let len = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or(0);
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: the socket is open, and the kernel reads one int, which lives until the call returns.
    if unsafe { libc::setsockopt(socket, libc::SOL_NETLINK, option, (&raw const on).cast(), len) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_each_message_in_words() {
        let mut socket = Socket::open().unwrap();
        // RTM_GETLINK of the loopback, and of an interface that there is not (struct ifinfomsg).
        let link = |index: i32| [&[0; 4][..], &index.to_ne_bytes(), &[0; 8]].concat();
        let (lo, none) = (link(1), link(i32::MAX));
        let get = |body| Request { kind: libc::RTM_GETLINK, flags: 0, body };
        assert_eq!(socket.ask(get(&lo)).unwrap().len(), 1);
        assert_eq!(socket.ask(get(&none)).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        // A header that is too short, many times: more than one batch.
        let short = Request { kind: libc::RTM_GETLINK, flags: 0, body: &[0; 4] };
        let answers = socket.play(&[short; 2 * BATCH + 1]).unwrap();
        assert_eq!(answers.len(), 2 * BATCH + 1);
        let Err(refusal) = &answers[0] else { panic!("accepted") };
        assert_eq!(refusal.errno, libc::EINVAL);
        assert!(refusal.words.contains("Invalid header"), "{refusal}");
        assert!(answers.iter().all(|answer| answer.as_ref() == Err(refusal)));
    }

    #[test]
    fn a_cut_message_ends_the_list() {
        assert!(split(&[0; 15]).is_none());
        let mut message = [0; 20];
        message[0] = 24;
        assert!(split(&message).is_none());
        message[0] = 15;
        assert!(split(&message).is_none());
        message[0] = 20;
        assert_eq!(split(&message).unwrap().0.body.len(), 4);
    }
}
