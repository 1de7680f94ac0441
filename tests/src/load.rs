//! What a network is measured with: a server that takes, gives, answers and floods as its client asks, and the clients. The probe
//! (`husk-test-probe load`) is the same in containers, in other guests and on the host.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::talk::connect;

/// Bytes of a request, and of its answer.
pub const REQUEST: usize = 64;
/// Bytes that one call moves.
const CHUNK: usize = 1 << 17;
/// Where nobody listens (RFC 863, which nobody serves any more).
const DISCARD: u16 = 9;

/// What the server does, and how often: the first message of a connection, one letter and a number.
#[derive(Clone, Copy)]
enum Order {
    /// Takes so many bytes, and says so.
    Take(u64),
    /// Gives so many.
    Give(u64),
    /// Answers requests until the client ends.
    Answer,
    /// Sends so many datagrams of [`REQUEST`] bytes to the client, as fast as it can, and says so.
    Flood(u64),
}

impl Order {
    fn write(self, stream: &mut TcpStream) -> io::Result<()> {
        let (letter, number) = match self {
            Self::Take(bytes) => (b't', bytes),
            Self::Give(bytes) => (b'g', bytes),
            Self::Answer => (b'a', 0),
            Self::Flood(count) => (b'f', count),
        };
        let mut message = [letter; 9];
        message[1..].copy_from_slice(&number.to_le_bytes());
        stream.write_all(&message)
    }

    fn read(stream: &mut TcpStream) -> io::Result<Self> {
        let mut message = [0; 9];
        stream.read_exact(&mut message)?;
        let [letter, number @ ..] = message;
        let number = u64::from_le_bytes(number);
        match letter {
            b't' => Ok(Self::Take(number)),
            b'g' => Ok(Self::Give(number)),
            b'a' => Ok(Self::Answer),
            b'f' => Ok(Self::Flood(number)),
            _ => Err(io::Error::other(format!("{letter} is no order"))),
        }
    }
}

/// Serves at all addresses of IPv4 until the process ends: what is measured need not have IPv6. `ready` is called when it can be reached.
///
/// # Errors
/// The port is taken.
pub fn serve(port: u16, ready: impl FnOnce()) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    ready();
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        // A client that ends in the middle is its own affair.
        thread::Builder::new().spawn(move || obey(stream).unwrap_or(()))?;
    }
    Ok(())
}

fn obey(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match Order::read(&mut stream)? {
        Order::Take(bytes) => {
            take(&mut stream, bytes)?;
            stream.write_all(b".")
        }
        Order::Give(bytes) => give(&mut stream, bytes),
        Order::Answer => {
            let mut request = [0; REQUEST];
            loop {
                stream.read_exact(&mut request)?;
                stream.write_all(&request)?;
            }
        }
        Order::Flood(count) => {
            flood(stream.peer_addr()?.ip(), count)?;
            stream.write_all(b".")
        }
    }
}

fn take(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => return Err(io::Error::other(format!("{left} of {bytes} bytes did not come"))),
            count => left = left.saturating_sub(count as u64),
        }
    }
    Ok(())
}

fn give(stream: &mut TcpStream, bytes: u64) -> io::Result<()> {
    let buffer = vec![0x5a; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        stream.write_all(&buffer[..count])?;
        left -= count as u64;
    }
    Ok(())
}

/// Sends so many datagrams of [`REQUEST`] bytes to where nobody takes them, as fast as it goes.
///
/// # Errors
/// There is no way to it.
pub fn flood(to: IpAddr, count: u64) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    for _ in 0..count {
        // Not connected, so that an answer that nobody listens is no error. What has no room is lost: that is a flood.
        match socket.send_to(&[0; REQUEST], (to, DISCARD)) {
            Err(cause) if cause.raw_os_error() != Some(libc::ENOBUFS) => return Err(cause),
            _ => {}
        }
    }
    Ok(())
}

fn confirmed(stream: &mut TcpStream) -> io::Result<()> {
    stream.read_exact(&mut [0])
}

/// Sends so many bytes, and waits until the server has them.
///
/// # Errors
/// It does not get them.
pub fn send(to: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = connect(to)?;
    Order::Take(bytes).write(&mut stream)?;
    give(&mut stream, bytes)?;
    confirmed(&mut stream)
}

/// Has the server send so many bytes.
///
/// # Errors
/// They do not come.
pub fn receive(to: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = connect(to)?;
    Order::Give(bytes).write(&mut stream)?;
    take(&mut stream, bytes)
}

/// A connection over which requests are answered.
pub struct Requests(TcpStream);

impl Requests {
    /// Makes it, and has a request answered.
    ///
    /// # Errors
    /// The server is not there, or does not answer.
    pub fn begin(to: SocketAddr) -> io::Result<Self> {
        let mut stream = connect(to)?;
        stream.set_nodelay(true)?;
        Order::Answer.write(&mut stream)?;
        let mut requests = Self(stream);
        requests.one()?;
        Ok(requests)
    }

    /// Asks, and waits for the answer: how long it took.
    ///
    /// # Errors
    /// There is none.
    pub fn one(&mut self) -> io::Result<Duration> {
        let begin = Instant::now();
        self.0.write_all(&[7; REQUEST])?;
        self.0.read_exact(&mut [0; REQUEST])?;
        Ok(begin.elapsed())
    }
}

/// Has the server flood the sender with so many datagrams.
///
/// # Errors
/// The server is not there, or cannot send.
pub fn be_flooded(by: SocketAddr, count: u64) -> io::Result<()> {
    let mut stream = connect(by)?;
    // As long as it takes.
    stream.set_read_timeout(None)?;
    Order::Flood(count).write(&mut stream)?;
    confirmed(&mut stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_does_what_its_clients_ask() {
        // A port that the kernel has chosen, and nobody has since.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::spawn(move || serve(port, || ready.send(()).unwrap()));
        is_ready.recv().unwrap();
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        send(server, 1_000_001).unwrap();
        receive(server, 1_000_001).unwrap();
        let mut requests = Requests::begin(server).unwrap();
        assert!(requests.one().unwrap() > Duration::ZERO);
        be_flooded(server, 10).unwrap();
        flood(server.ip(), 10).unwrap();
        // More than there is: the end comes before.
        let mut short = connect(server).unwrap();
        Order::Give(10).write(&mut short).unwrap();
        assert_eq!(take(&mut short, 11).unwrap_err().to_string(), "1 of 11 bytes did not come");
    }
}
