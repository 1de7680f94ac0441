//! In a real namespace, with an agent that is not one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::net::{AddressFamily, SocketType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;

use super::*;

/// Nobody listens there in the guest.
const CLOSED: u16 = 7;
/// Who listens there ends what it says at once, and then everything.
const BRIEF: u16 = 9;
/// Who listens there listens at ::1 alone.
const SIX: u16 = 6;
const MOST: u32 = 16;

/// A guest that gives back what it gets, and tells of every connection and of its end.
struct Echo {
    told: mpsc::UnboundedSender<(Protocol, SocketAddr)>,
    ended: mpsc::UnboundedSender<SocketAddr>,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Forward for Echo {
    async fn forward(&self, protocol: Protocol, to: SocketAddr) -> Result<UnixStream, NotTaken> {
        if to.port() == CLOSED || (to.port() == SIX && to.is_ipv4()) {
            return Err(NotTaken::Refused);
        }
        self.told.send((protocol, to)).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (ended, now) = (self.ended.clone(), Arc::clone(&self.now));
        self.most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
        tokio::spawn(async move {
            if to.port() == BRIEF {
                theirs.write_all(b"bye").await.unwrap();
            } else {
                let (mut read, mut write) = theirs.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            }
            now.fetch_sub(1, Ordering::Relaxed);
            let _ = ended.send(to);
        });
        Ok(ours)
    }
}

/// A namespace whose loopback is up, and what came to its guest.
struct Bed {
    namespace: Namespace,
    localhost: Localhost,
    told: mpsc::UnboundedReceiver<(Protocol, SocketAddr)>,
    ended: mpsc::UnboundedReceiver<SocketAddr>,
    most: Arc<AtomicUsize>,
}

/// A new network namespace: made in a thread of its own, because a namespace is a thread's.
fn new_namespace() -> io::Result<OwnedFd> {
    let make = || {
        // SAFETY: nothing of this thread's is used behind it that would be of the old namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        std::fs::File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    };
    std::thread::spawn(make).join().unwrap()
}

/// Brings the loopback of this thread's namespace up.
fn loopback_up() -> io::Result<()> {
    let any = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = libc::c_char::try_from(b'l').unwrap();
    request.ifr_name[1] = libc::c_char::try_from(b'o').unwrap();
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
    // SAFETY: the request lives through the call, and is of this call's type.
    if unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

impl Bed {
    /// None, and a line that says so: namespaces or BPF are not permitted here.
    fn new(most: u32) -> Option<Self> {
        let namespace = match new_namespace() {
            Ok(namespace) => namespace,
            Err(cause) => {
                eprintln!("SKIPPED: no network namespace can be made here: {cause}");
                return None;
            }
        };
        let (told_sender, told) = mpsc::unbounded_channel();
        let (ended_sender, ended) = mpsc::unbounded_channel();
        let most_seen = Arc::default();
        let echo = Echo { told: told_sender, ended: ended_sender, now: Arc::default(), most: Arc::clone(&most_seen) };
        let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        let localhost = match Localhost::start(namespace.as_fd(), echo, most) {
            Ok(localhost) => localhost,
            Err(LocalhostError::Bpf { what, cause } | LocalhostError::Namespace { what, cause })
                if cause.kind() == io::ErrorKind::PermissionDenied =>
            {
                eprintln!("SKIPPED: not permitted here: {what}: {cause}");
                return None;
            }
            Err(cause) => panic!("{cause}"),
        };
        assert_eq!(std::fs::read_link("/proc/thread-self/ns/net").unwrap(), before, "the thread is where it was");
        let namespace = Namespace::new(namespace.as_fd()).unwrap();
        // As with `ctr run --cni`: it comes up when the shim is there.
        namespace.inside(loopback_up).unwrap();
        Some(Self { namespace, localhost, told, ended, most: most_seen })
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.namespace.inside(|| sockets::stream(to.ip())).unwrap();
        // SAFETY: the descriptor was owned, and is the result's from now on.
        unsafe { TcpSocket::from_raw_fd(socket.into_raw_fd()) }.connect(to).await
    }

    fn udp(&self, address: IpAddr) -> UdpSocket {
        self.udp_at(SocketAddr::new(address, 0))
    }

    fn udp_at(&self, address: SocketAddr) -> UdpSocket {
        let socket = self.namespace.inside(|| std::net::UdpSocket::bind(address)).unwrap();
        socket.set_nonblocking(true).unwrap();
        UdpSocket::from_std(socket).unwrap()
    }
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

async fn echoed(client: &UdpSocket, to: SocketAddr, bytes: &[u8]) {
    client.send_to(bytes, to).await.unwrap();
    let mut answer = vec![0; 70_000];
    let (len, from) = client.recv_from(&mut answer).await.unwrap();
    assert!(answer[..len] == *bytes, "{len} bytes of {}", bytes.len());
    assert_eq!(from, to, "an answer comes from where the question went");
}

#[tokio::test]
async fn connections_reach_the_guest_at_every_address_and_port() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    for to in ["127.0.0.1:80", "127.1.2.3:65535", "[::1]:443"].map(at) {
        let mut client = bed.connect(to).await.unwrap();
        assert_eq!(client.peer_addr().unwrap(), to);
        assert_eq!(bed.told.recv().await, Some((Protocol::Tcp, to)));
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 9)).to_le_bytes()[0]).collect();
        let (mut read, mut write) = client.split();
        let mut got = Vec::new();
        // The answer goes on behind the end of the question.
        let question = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let (_, ()) = tokio::join!(async { read.read_to_end(&mut got).await.unwrap() }, question);
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        assert_eq!(bed.ended.recv().await, Some(to));
    }
}

#[tokio::test]
async fn a_port_without_a_listener_is_a_reset() {
    let Some(bed) = Bed::new(MOST) else { return };
    for to in [V4, V6].map(|address| SocketAddr::new(address, CLOSED)) {
        let mut client = bed.connect(to).await.unwrap();
        let cause = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(cause.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn the_name_localhost_finds_who_listens_at_the_second_address() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    let _client = bed.connect(SocketAddr::new(V4, SIX)).await.unwrap();
    assert_eq!(bed.told.recv().await, Some((Protocol::Tcp, SocketAddr::new(V6, SIX))));
    // No name stands for this one.
    let mut client = bed.connect(at("127.0.0.2:6")).await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_flood_is_bounded_and_leaves_nothing() {
    let Some(bed) = Bed::new(MOST) else { return };
    let bed = Arc::new(bed);
    let to = at("127.0.0.1:80");
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let bed = Arc::clone(&bed);
        clients.spawn(async move {
            let mut client = bed.connect(to).await?;
            client.write_all(b"x").await?;
            client.read_exact(&mut [0]).await?;
            Ok::<_, io::Error>(client)
        });
    }
    let (mut held, mut reset) = (Vec::new(), 0);
    while let Some(client) = clients.join_next().await {
        match client.unwrap() {
            Ok(client) => held.push(client),
            Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => reset += 1,
            Err(cause) => panic!("{cause}"),
        }
    }
    assert_eq!((held.len(), reset), (16, 984));
    assert_eq!(bed.most.load(Ordering::Relaxed), 16);
    drop(held);
    // Room again as soon as their ends have come.
    let mut bed = Arc::into_inner(bed).unwrap();
    for _ in 0..16 {
        bed.ended.recv().await.unwrap();
    }
    let mut client = bed.connect(to).await.unwrap();
    client.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
}

#[tokio::test]
async fn whoever_goes_away_is_missed() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    let to = at("127.0.0.1:80");
    let client = bed.connect(to).await.unwrap();
    bed.told.recv().await.unwrap();
    client.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(bed.ended.recv().await, Some(to), "the guest is told that the client is gone");
    // The guest goes, while the client says nothing and waits.
    let mut client = bed.connect(SocketAddr::new(V4, BRIEF)).await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, b"bye");
    // A write to a closed connection is answered by a reset.
    let cause = loop {
        match client.write(b"anybody?").await {
            Ok(_) => tokio::task::yield_now().await,
            Err(cause) => break cause,
        }
    };
    assert!(matches!(cause.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{cause}");
}

#[tokio::test]
async fn its_end_is_the_end_of_everything() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    let to = at("127.0.0.1:80");
    let mut client = bed.connect(to).await.unwrap();
    bed.told.recv().await.unwrap();
    let udp = bed.udp(V4);
    echoed(&udp, to, b"before").await;
    let Bed { namespace, localhost, told, mut ended, .. } = bed;
    drop(localhost);
    assert_eq!(ended.recv().await, Some(to));
    assert_eq!(ended.recv().await, Some(to));
    assert!(!matches!(client.read(&mut [0]).await, Ok(1..)));
    let refused = namespace.inside(|| std::net::TcpStream::connect(to)).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    udp.connect(to).await.unwrap();
    udp.send(b"after").await.unwrap();
    assert_eq!(udp.recv(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    drop(told);
}

#[tokio::test]
async fn a_listener_of_the_namespace_comes_first() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    // At the address, and at all of them.
    for (own, to) in [("127.0.0.1:81", "127.0.0.1:81"), ("[::]:82", "127.9.9.9:82"), ("[::1]:83", "[::1]:83")] {
        let (own, to) = (at(own), at(to));
        let listener = bed.namespace.inside(|| std::net::TcpListener::bind(own)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let mut client = bed.connect(to).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"own").await.unwrap();
        server.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"own");
        assert!(bed.told.try_recv().is_err(), "the guest was not asked");
        // Without it, the port is the guest's.
        drop(listener);
        let _client = bed.connect(to).await.unwrap();
        assert_eq!(bed.told.recv().await, Some((Protocol::Tcp, to)));
    }
}

#[tokio::test]
async fn datagrams_come_back_from_where_they_went() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    for to in ["127.0.0.1:53", "127.1.2.3:5353", "[::1]:53"].map(at) {
        let client = bed.udp(if to.is_ipv4() { V4 } else { V6 });
        for bytes in [&b"question"[..], b"", &[7; 60_000], b"more"] {
            echoed(&client, to, bytes).await;
        }
        assert_eq!(bed.told.recv().await, Some((Protocol::Udp, to)));
        assert!(bed.told.try_recv().is_err(), "all of it is one flow");
        // Another client of the same port; connected, and with two questions at once, as a resolver has them.
        let other = bed.udp(to.ip());
        other.connect(to).await.unwrap();
        other.send(b"A").await.unwrap();
        other.send(b"AAAA").await.unwrap();
        let mut answer = [0; 10];
        assert_eq!(other.recv(&mut answer).await.unwrap(), 1);
        assert_eq!(other.recv(&mut answer).await.unwrap(), 4);
        assert_eq!(bed.told.recv().await, Some((Protocol::Udp, to)));
        echoed(&client, to, b"still").await;
    }
}

#[tokio::test]
async fn flows_are_bounded_and_the_oldest_goes() {
    let Some(mut bed) = Bed::new(2) else { return };
    let clients: Vec<_> = (0..20).map(|_| bed.udp(V4)).collect();
    for (number, client) in clients.iter().enumerate() {
        let to = SocketAddr::new(V4, 1000 + u16::try_from(number).unwrap());
        echoed(client, to, b"x").await;
        if number >= 2 {
            assert_eq!(bed.ended.recv().await, Some(SocketAddr::new(V4, to.port() - 2)));
        }
    }
    assert!(bed.most.load(Ordering::Relaxed) <= 3);
    // Whose flow has ended begins another.
    echoed(&clients[0], at("127.0.0.1:1000"), b"again").await;
}

#[tokio::test]
async fn a_client_that_closes_its_socket_ends_its_flow() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    let to = at("127.0.0.1:53");
    let client = bed.udp(V4);
    echoed(&client, to, b"x").await;
    // The second answer finds nobody.
    client.send_to(b"y", to).await.unwrap();
    drop(client);
    assert_eq!(bed.ended.recv().await, Some(to));
}

#[tokio::test]
async fn sockets_of_the_namespace_talk_to_each_other() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    for (address, own) in [(V4, "127.0.0.1:54"), (V4, "0.0.0.0:55"), (V6, "[::1]:54")] {
        let server = bed.udp_at(at(own));
        let to = SocketAddr::new(address, at(own).port());
        let client = bed.udp(address);
        for bytes in [&b"odd"[..], b"", &[9; 50_000]] {
            client.send_to(bytes, to).await.unwrap();
            let mut got = vec![0; 60_000];
            let (len, from) = server.recv_from(&mut got).await.unwrap();
            assert_eq!(got[..len], *bytes);
            assert_eq!(from, client.local_addr().unwrap(), "the sender is who it was");
            server.send_to(b"answer", from).await.unwrap();
            let (len, from) = client.recv_from(&mut got).await.unwrap();
            assert_eq!((&got[..len], from), (&b"answer"[..], to));
        }
        assert!(bed.told.try_recv().is_err(), "the guest was not asked");
    }
}

#[tokio::test]
async fn two_pods_in_one_namespace() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    let (told, mut second) = mpsc::unbounded_channel();
    let (ended, _ended) = mpsc::unbounded_channel();
    let echo = Echo { told, ended, now: Arc::default(), most: Arc::default() };
    let later = Localhost::start(bed.namespace.descriptor(), echo, MOST).unwrap();
    let to = at("127.0.0.1:80");
    let _first = bed.connect(to).await.unwrap();
    assert_eq!(bed.told.recv().await, Some((Protocol::Tcp, to)), "whoever was first stays");
    let Bed { namespace, localhost, told, ended, most } = bed;
    drop(localhost);
    let bed = Bed { namespace, localhost: later, told, ended, most };
    let _second = bed.connect(to).await.unwrap();
    assert_eq!(second.recv().await, Some((Protocol::Tcp, to)));
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_nobody_uses_ends() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    let to = at("127.0.0.1:53");
    let client = bed.udp(V4);
    let begin = tokio::time::Instant::now();
    echoed(&client, to, b"x").await;
    // Time passes by itself while nobody has anything to do.
    assert_eq!(bed.ended.recv().await, Some(to));
    assert!(begin.elapsed() >= Duration::from_secs(60));
    echoed(&client, to, b"again").await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_is_the_guests_again_when_its_socket_is_gone() {
    let Some(mut bed) = Bed::new(MOST) else { return };
    let to = at("127.0.0.1:54");
    let (server, client) = (bed.udp_at(to), bed.udp(V4));
    client.send_to(b"own", to).await.unwrap();
    assert_eq!(server.recv(&mut [0; 10]).await.unwrap(), 3);
    drop(server);
    tokio::time::sleep(Duration::from_secs(11)).await;
    echoed(&client, to, b"guest").await;
    assert_eq!(bed.told.recv().await, Some((Protocol::Udp, to)));
}

#[test]
fn a_killed_shim_leaves_nothing() {
    let made = new_namespace().and_then(|namespace| Ok((Namespace::new(namespace.as_fd())?, namespace)));
    let (inside, namespace) = match made {
        Ok(made) => made,
        Err(cause) => {
            eprintln!("SKIPPED: no network namespace can be made and left here: {cause}");
            return;
        }
    };
    inside.inside(loopback_up).unwrap();
    let connect = || inside.inside(|| std::net::TcpStream::connect(at("127.0.0.1:80")));
    let (told, tell) = rustix::pipe::pipe().unwrap();
    // SAFETY: the child has this thread alone; libc's fork leaves memory to be had, and nothing else that threads share is used.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "{}", io::Error::last_os_error());
    if child == 0 {
        let _ = std::panic::catch_unwind(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (told, ended) = (mpsc::unbounded_channel().0, mpsc::unbounded_channel().0);
                let echo = Echo { told, ended, now: Arc::default(), most: Arc::default() };
                let started = Localhost::start(namespace.as_fd(), echo, MOST);
                rustix::io::write(&tell, &[u8::from(started.is_ok())]).unwrap();
                std::future::pending::<()>().await;
            });
        });
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { libc::_exit(1) };
    }
    drop(tell);
    let mut started = [0];
    rustix::io::read(&told, &mut started).unwrap();
    let accepted = connect();
    // SAFETY: a child of ours that nobody has waited for; no status is asked for.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    if started == [0] {
        eprintln!("SKIPPED: localhost cannot be started here");
        return;
    }
    accepted.unwrap();
    assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
}
