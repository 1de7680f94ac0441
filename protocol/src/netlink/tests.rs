use rustix::net::SendFlags;
use rustix::net::netlink::SocketAddrNetlink;

use super::*;

/// `struct ifinfomsg`.
const LINK: [u8; 16] = [0; 16];
/// IFLA_IFNAME.
const NAME: u16 = 3;

fn numbered(message: &Message, sequence: u32, more: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.write(sequence, more, &mut bytes);
    bytes
}

#[test]
fn messages_are_walked_as_they_were_built() {
    let message = Message::new(kinds::NEW_LINK, flags::CREATE, &LINK)
        .with_text(NAME, "eth0")
        .with_nested(18, |inside| inside.with(1, b"abc").with_nested(2, |inner| inner.with_number(7, 0x0102_0304)))
        .with_number(4, 1500);
    let bytes = numbered(&message, 9, flags::ACK);
    let (header, payload, rest) = Header::split(&bytes).unwrap();
    assert_eq!(
        header,
        Header { kind: kinds::NEW_LINK, flags: flags::REQUEST | flags::CREATE | flags::ACK, sequence: 9, port: 0 }
    );
    assert!(rest.is_empty());
    let all = attributes(&payload[LINK.len()..]);
    assert_eq!(all.find(NAME).map(text).as_deref(), Some("eth0"));
    assert_eq!(all.number(4), Some(1500));
    let inside = attributes(all.find(18).unwrap());
    assert_eq!(inside.find(1), Some(&b"abc"[..]));
    assert_eq!(attributes(inside.find(2).unwrap()).number(7), Some(0x0102_0304));
}

#[test]
fn what_ends_in_the_middle_is_an_error() {
    let bytes = numbered(&Message::new(kinds::NEW_LINK, 0, &LINK).with_text(NAME, "eth0"), 1, 0);
    for end in 0..bytes.len() {
        assert_eq!(Header::split(&bytes[..end]), Err(Malformed::Message), "{end}");
    }
}

#[test]
fn the_kernel_lists_does_and_says_why_not() {
    let mut socket = Socket::open().unwrap();
    let request = Message::new(kinds::GET_LINK, 0, &LINK);
    let names = socket.dump(&request, Vec::new, |names, kind, payload| {
        assert_eq!(kind, kinds::NEW_LINK);
        names.extend(attributes(&payload[LINK.len()..]).find(NAME).map(text));
    });
    assert!(names.unwrap().contains(&"lo".to_owned()));
    let nobody = Message::new(kinds::SET_LINK, 0, &LINK).with_text(NAME, "husk-no-such");
    let refused = socket.ask(nobody).unwrap_err();
    assert_eq!(refused.errno(), Some(libc::ENODEV), "{refused}");
    assert!(Socket::listen(&[1, 5]).unwrap().events(|_, _| ()).is_ok());
    assert!(Socket::listen(&[100_000]).is_err());
}

#[test]
fn the_kernel_answers_each_message_in_words() {
    let mut socket = Socket::open().unwrap();
    // Of the loopback, and of an interface that there is not (struct ifinfomsg).
    let link = |index: i32| Message::new(kinds::GET_LINK, 0, &[&[0; 4][..], &index.to_ne_bytes(), &[0; 8]].concat());
    assert_eq!(socket.get(&link(1)).unwrap().len(), 1);
    assert_eq!(socket.get(&link(i32::MAX)).unwrap_err().errno(), Some(libc::ENODEV));
    // A header that is too short, many times: more than one batch.
    let short = Message::new(kinds::GET_LINK, 0, &[0; 4]);
    let answers = socket.play(&vec![short; 100]).unwrap();
    assert_eq!(answers.len(), 100);
    for answer in answers {
        let refused = answer.unwrap_err();
        assert_eq!(refused.errno(), Some(libc::EINVAL));
        assert!(refused.to_string().contains("Invalid header"), "{refused}");
    }
}

#[test]
fn whoever_is_not_the_kernel_is_not_heard() {
    let mut socket = Socket::open().unwrap();
    let port = SocketAddrNetlink::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    let other = Socket::open().unwrap();
    // What would be the answer to the next question: no such thing.
    let mut forged = Vec::new();
    Message::new(kinds::ERROR, 0, &[&(-libc::ENOENT).to_ne_bytes()[..], &[0; 16]].concat()).write(1, 0, &mut forged);
    match rustix::net::sendto(&other, &forged, SendFlags::empty(), &port) {
        Err(cause) => eprintln!("skipped: this process may not send to another's socket: {cause}"),
        Ok(_) => assert_eq!(
            socket
                .get(&Message::new(kinds::GET_LINK, 0, &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
                .unwrap()
                .len(),
            1
        ),
    }
}
