use super::*;

/// `struct ifinfomsg`.
const LINK: [u8; 16] = [0; 16];
/// IFLA_IFNAME.
const NAME: u16 = 3;

#[test]
fn messages_are_walked_as_they_were_built() {
    let message = Message::new(kinds::NEW_LINK, flags::CREATE, &LINK)
        .with_text(NAME, "eth0")
        .with_nested(18, |inside| inside.with(1, b"abc").with_nested(2, |inner| inner.with_number(7, 0x0102_0304)))
        .with_number(4, 1500);
    assert_eq!(message.kind(), kinds::NEW_LINK);
    let bytes = message.numbered(9, flags::ACK);
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
    let bytes = Message::new(kinds::NEW_LINK, 0, &LINK).with_text(NAME, "eth0").numbered(1, 0);
    for end in 0..bytes.len() {
        assert_eq!(Header::split(&bytes[..end]), Err(Malformed), "{end}");
    }
    let payload = Header::split(&bytes).unwrap().1;
    for end in 1..12 {
        let walked: Vec<_> = attributes(&payload[16..16 + end]).collect();
        assert!(walked.iter().all(Result::is_err) || end >= 9, "{end}: {walked:?}");
    }
    // A length below the attribute's own head, and one of zero: no walk that does not end.
    for length in 0..4_u16 {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        assert_eq!(attributes(&bytes).collect::<Vec<_>>(), [Err(Malformed)]);
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
