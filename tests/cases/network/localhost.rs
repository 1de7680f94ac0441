//! localhost of the pod's namespace on the host reaches listeners in the guest.

use std::io::{ErrorKind, Read};
use std::net::{IpAddr, TcpStream, UdpSocket};

use husk_tests::network::Namespace;
use husk_tests::talk;

use super::{PORT, case, root, same, serve, session, talk_from_here};

/// Connects there, and says how the connection ends.
fn end_of(address: &str, port: u16) -> ErrorKind {
    let address: IpAddr = address.parse().unwrap();
    match talk::connect((address, port).into()) {
        Err(cause) => cause.kind(),
        Ok(mut stream) => stream.read(&mut [0]).map(|_| ErrorKind::UnexpectedEof).unwrap_or_else(|cause| cause.kind()),
    }
}

#[test]
fn localhost_reaches_the_guest() {
    case(|| {
        let namespace = Namespace::new("local-a");
        let before = namespace.listing();
        let root = root();
        let mut husk = session("local-a", &root, &namespace);
        serve(&mut husk);
        same(&namespace.listing(), &before, "the namespace shows nothing of it");
        for address in ["127.0.0.1", "127.8.9.10", "::1"] {
            // A server at no address of its own answers datagrams to this one from 127.0.0.1, which is not who was asked.
            if address == "127.8.9.10" {
                namespace.inside(|| talk::stream((address.parse::<IpAddr>().unwrap(), PORT).into(), 1000)).unwrap();
            } else {
                namespace.inside(|| talk_from_here(address, PORT, 1));
            }
            assert_eq!(namespace.inside(|| end_of(address, 9)), ErrorKind::ConnectionReset, "{address}");
        }
        let to: IpAddr = "127.0.0.1".parse().unwrap();
        namespace.inside(|| talk::many((to, PORT).into(), 100)).unwrap();
        // A server that begins later, and ends the connection by itself.
        husk.must("busybox nc -l -p 7100 -e /bin/pwd &");
        husk.until("busybox netstat -ltn | grep -q :7100");
        let mut said = String::new();
        namespace.inside(|| TcpStream::connect((to, 7100)).unwrap().read_to_string(&mut said)).unwrap();
        assert_eq!(said, "/\n");
        // What is lost is lost, and nobody waits for it.
        let socket = namespace.inside(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        socket.send_to(b"nobody", ("127.0.0.1", 9)).unwrap();
        drop(socket);
        assert_eq!(husk.end(), 0);
        for address in ["127.0.0.1", "::1"] {
            assert_eq!(namespace.inside(|| end_of(address, PORT)), ErrorKind::ConnectionRefused, "{address}");
        }
        same(&namespace.listing(), &before, "at the end");
    });
}
