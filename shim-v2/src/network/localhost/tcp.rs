//! Connections.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::carry::carry;
use super::{Forward, NotTaken, Protocol, SHORT, Shared, sockets};
use crate::config::limits;

/// Descriptors of a connection: the client's, the stream, and the one that tells of its end.
pub(super) const DESCRIPTORS: u64 = 3;

/// Takes the connections of one listener.
pub(super) struct Acceptor<F> {
    listener: TcpListener,
    ours: SocketAddr,
    shared: Arc<Shared<F>>,
    /// One permit for each connection, of all listeners.
    connections: Arc<Semaphore>,
}

impl<F: Forward> Acceptor<F> {
    pub(super) fn new(listener: OwnedFd, shared: Arc<Shared<F>>, connections: Arc<Semaphore>) -> io::Result<Self> {
        let listener = TcpListener::from_std(StdListener::from(listener))?;
        let ours = listener.local_addr()?;
        Ok(Self { listener, ours, shared, connections })
    }

    pub(super) async fn run(self) {
        // They end with this.
        let mut serving = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = serving.join_next() => continue,
            };
            match accepted {
                Ok((client, _)) => match Arc::clone(&self.connections).try_acquire_owned() {
                    Ok(permit) => {
                        let (shared, ours) = (Arc::clone(&self.shared), self.ours);
                        serving.spawn(async move {
                            serve(&shared, client, ours).await;
                            drop(permit);
                        });
                    }
                    Err(_) => {
                        reset(&client);
                        let most = self.shared.most;
                        self.shared.said.warn(&format!(
                            "connections are reset: there are {most} already (network.localhost_connections, limit of open files)"
                        ));
                    }
                },
                Err(cause) if is_short(&cause) => {
                    self.shared.said.warn(&format!("no connection can be taken: {cause}"));
                    tokio::time::sleep(SHORT).await;
                }
                // That one was gone already.
                Err(_) => {}
            }
        }
    }
}

fn is_short(cause: &io::Error) -> bool {
    matches!(cause.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

/// The client is told by a reset, when its connection is closed.
fn reset(client: &TcpStream) {
    // Else it sees an end.
    let _ = client.set_zero_linger();
}

async fn serve<F: Forward>(shared: &Shared<F>, client: TcpStream, ours: SocketAddr) {
    let carried = async {
        client.set_nodelay(true)?;
        // What it was sent to: the program has changed the socket and not the packet.
        let destination = client.local_addr()?;
        if shared.is_local(Protocol::Tcp, destination, ours) {
            let listener = connect_local(shared, destination).await?;
            return carry(&client, &listener).await;
        }
        match in_guest(shared, destination).await {
            Ok(guest) => carry(&client, &guest).await,
            Err(_) => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    };
    if carried.await.is_err() {
        reset(&client);
    }
}

/// Connects in the guest. Whoever dials the name `localhost` takes ::1 when 127.0.0.1 refuses (containerd's port-forward does), and is not
/// refused here: so this does it in its place.
async fn in_guest<F: Forward>(shared: &Shared<F>, destination: SocketAddr) -> Result<UnixStream, NotTaken> {
    let other = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), destination.port());
    match shared.forward(Protocol::Tcp, destination).await {
        Err(NotTaken::Refused) if destination.ip() == Ipv4Addr::LOCALHOST => shared.forward(Protocol::Tcp, other).await,
        answer => answer,
    }
}

/// Connects to a listener that is the namespace's own: the program leaves its port alone meanwhile, so that others get there directly.
async fn connect_local<F: Forward>(shared: &Shared<F>, destination: SocketAddr) -> io::Result<TcpStream> {
    let _left = shared.local.leave(Protocol::Tcp, destination)?;
    let socket = shared.namespace.inside(|| sockets::stream(destination.ip()))?;
    // SAFETY: the descriptor was owned, and is the result's from now on.
    let socket = unsafe { TcpSocket::from_raw_fd(socket.into_raw_fd()) };
    let connected = tokio::time::timeout(limits().forward(), socket.connect(destination));
    let stream = connected.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
