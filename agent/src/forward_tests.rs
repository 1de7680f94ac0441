//! With servers on this host's loopback, and a host that is not one.

use std::sync::Mutex;
use std::time::Duration;

use tokio::net::{TcpListener, UnixStream};

use super::*;

/// Dials that end in the test's hands.
#[derive(Default)]
struct Local(Mutex<Vec<UnixStream>>);

impl Dial for Local {
    type Stream = UnixStream;
    async fn dial(&self, _: u32) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.0.lock().unwrap().push(theirs);
        Ok(ours)
    }
}

fn request(to: SocketAddr, udp: bool) -> ForwardRequest {
    let address = match to.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    ForwardRequest { nonce: vec![5; 16], address, port: to.port().into(), udp, ..Default::default() }
}

/// The host's end of a connection that stands.
async fn forwarded(to: SocketAddr, udp: bool) -> UnixStream {
    let dial = Local::default();
    forward(&request(to, udp), &dial).await.unwrap();
    let mut host = dial.0.into_inner().unwrap().remove(0);
    let mut nonce = [0; 16];
    host.read_exact(&mut nonce).await.unwrap();
    assert_eq!(nonce, [5; 16]);
    host
}

#[tokio::test]
async fn bytes_go_both_ways_and_ends_do_too() {
    for address in ["127.0.0.1:0", "127.3.2.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(address).await.unwrap();
        let host = forwarded(listener.local_addr().unwrap(), false).await;
        let (mut server, _) = listener.accept().await.unwrap();
        let echo = async {
            let (mut read, mut write) = server.split();
            tokio::io::copy(&mut read, &mut write).await.unwrap();
            write.write_all(b"end").await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 9)).to_le_bytes()[0]).collect();
        let (mut read, mut write) = host.into_split();
        let question = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let ((), (), _) = tokio::join!(echo, question, async { read.read_to_end(&mut got).await.unwrap() });
        sent.extend_from_slice(b"end");
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_and_no_dial() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    drop(listener);
    let dial = Local::default();
    let cause = forward(&request(to, false), &dial).await.unwrap_err();
    assert!(
        matches!(&cause, ForwardError::Connect { cause, .. } if cause.kind() == io::ErrorKind::ConnectionRefused),
        "{cause}"
    );
    assert!(dial.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn nothing_but_the_loopback() {
    let dial = Local::default();
    for address in ["10.0.0.1:80", "0.0.0.0:80", "[::]:80", "[::ffff:127.0.0.1]:80", "[fe80::1]:80", "127.0.0.1:0"] {
        for udp in [false, true] {
            let cause = forward(&request(address.parse().unwrap(), udp), &dial).await.unwrap_err();
            assert!(matches!(cause, ForwardError::Invalid(_)), "{address}: {cause}");
        }
    }
    let good = request("127.0.0.1:80".parse().unwrap(), false);
    for bad in [
        ForwardRequest { address: vec![127, 0, 0], ..good.clone() },
        ForwardRequest { address: Vec::new(), ..good.clone() },
        ForwardRequest { port: 65536 + 80, ..good.clone() },
        ForwardRequest { nonce: vec![1; 15], ..good },
    ] {
        assert!(matches!(forward(&bad, &dial).await, Err(ForwardError::Invalid(_))));
    }
}

#[tokio::test]
async fn whoever_goes_away_is_missed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = listener.local_addr().unwrap();
    // The host closes, while the server says nothing and waits.
    let host = forwarded(to, false).await;
    let (mut server, _) = listener.accept().await.unwrap();
    drop(host);
    let end = server.read(&mut [0]).await;
    assert!(!matches!(end, Ok(1..)));
    let cause = loop {
        match server.write(b"anybody?").await {
            Ok(_) => tokio::task::yield_now().await,
            Err(cause) => break cause,
        }
    };
    assert!(matches!(cause.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{cause}");
    // The host ends its direction, and closes later.
    let mut host = forwarded(to, false).await;
    let (mut server, _) = listener.accept().await.unwrap();
    host.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    server.write_all(b"late").await.unwrap();
    let mut late = [0; 4];
    host.read_exact(&mut late).await.unwrap();
    drop(host);
    server.ready(Interest::ERROR).await.unwrap();
    // A reset behind the end (tcp_reset in net/ipv4/tcp_input.c).
    assert_eq!(server.take_error().unwrap().unwrap().kind(), io::ErrorKind::BrokenPipe);
    // The server resets.
    let mut host = forwarded(to, false).await;
    let (server, _) = listener.accept().await.unwrap();
    server.set_zero_linger().unwrap();
    drop(server);
    assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    assert!(host.write_all(b"x").await.is_err(), "both directions have ended");
}

#[tokio::test]
async fn datagrams_keep_their_lengths() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let server = UdpSocket::bind(address).await.unwrap();
        let mut host = forwarded(server.local_addr().unwrap(), true).await;
        let mut buffer = vec![0; LONGEST];
        for bytes in [&b"question"[..], b"", &[3; 60_000]] {
            let framed = [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
            // In pieces, as a stream may come.
            let (first, rest) = framed.split_at(1);
            host.write_all(first).await.unwrap();
            tokio::task::yield_now().await;
            host.write_all(rest).await.unwrap();
            let (len, client) = server.recv_from(&mut buffer).await.unwrap();
            assert!(buffer[..len] == *bytes);
            server.send_to(bytes, client).await.unwrap();
            let mut answer = vec![0; framed.len()];
            host.read_exact(&mut answer).await.unwrap();
            assert!(answer == framed);
        }
        // Longer than a datagram can be: lost, and what comes next is not.
        host.write_all(&[&[0xff, 0xff][..], &[1; LONGEST], &[0, 1, 7]].concat()).await.unwrap();
        let (len, _) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(buffer[..len], [7]);
        // Nobody is there any more: the host learns of it.
        drop(server);
        host.write_all(&[0, 1, 8]).await.unwrap();
        let end = tokio::time::timeout(Duration::from_secs(10), host.read(&mut [0])).await.unwrap();
        assert!(!matches!(end, Ok(1..)));
    }
}
