use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use husk_protocol::agent::{Agent, SetNetworkResponse, create_agent};
use husk_protocol::control::{
    Envelope, Failure, Message as FromVmm, Reply, Request, Socket as ControlSocket, SocketError,
};
use husk_protocol::netlink::flags;
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::super::Devices;
use super::super::namespace::open_namespace;
use super::super::tests::{in_new_namespace, links, make_veth, set_up};
use super::*;

/// Of a machine with one CPU.
const OFFER: Offer = {
    let free = NetRate { bytes: 0, burst_bytes: 0, packets: 0, burst_packets: 0 };
    Offer { room: 8, queues: 1, vhost: false, sent: free, received: free }
};

/// What a VMM has of a carrier's: the devices with their taps, and those that it will refuse once.
#[derive(Default)]
struct Vmm {
    devices: Mutex<BTreeMap<String, Vec<OwnedFd>>>,
    /// Those whose packets the kernel is to move.
    vhost: Mutex<Vec<String>>,
    refuses: Mutex<Vec<String>>,
    /// An interface that goes away with the next refusal.
    goes: Mutex<Option<u32>>,
}

impl Vmm {
    fn has(&self, index: u32) -> bool {
        self.devices.lock().unwrap().contains_key(&device(index))
    }

    /// Answers the shim. Taps that were taken away stay open, as for a moment with the real one.
    async fn run(self: Arc<Self>, socket: ControlSocket) {
        let socket = watch(socket, Interest::READABLE).unwrap();
        let mut taken_away = Vec::new();
        loop {
            let received = match socket.get_ref().receive::<Envelope>() {
                Err(SocketError::WouldBlock) => {
                    socket.readable().await.unwrap().clear_ready();
                    continue;
                }
                Err(_) => return,
                Ok(received) => received,
            };
            let Envelope { id, request } = received.message;
            let result = match request {
                Request::AddNet(net) => {
                    let mut refuses = self.refuses.lock().unwrap();
                    if let Some(at) = refuses.iter().position(|name| *name == net.name) {
                        refuses.remove(at);
                        if let Some(index) = self.goes.lock().unwrap().take() {
                            delete(&mut Socket::open().unwrap(), index);
                        }
                        Err(Failure { message: "not now".into() })
                    } else {
                        if net.vhost {
                            self.vhost.lock().unwrap().push(net.name.clone());
                        }
                        self.devices.lock().unwrap().insert(net.name, received.descriptors);
                        Ok(Reply::Net { window: 3 })
                    }
                }
                Request::RemoveNet { name } => {
                    taken_away.push(self.devices.lock().unwrap().remove(&name));
                    Ok(Reply::Done)
                }
                _ => Ok(Reply::Done),
            };
            socket.get_ref().send(&FromVmm::Reply { id, result }, &[]).unwrap();
        }
    }
}

/// Takes whatever it is told, until it hangs.
#[derive(Default)]
struct Guest {
    hangs: Arc<AtomicBool>,
}

#[async_trait]
impl Agent for Guest {
    async fn set_network(&self, _: &TtrpcContext, _: SetNetworkRequest) -> ttrpc::Result<SetNetworkResponse> {
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        // As no honest one says it.
        let warnings = vec!["\x1b[2J\nwhat".into(); 1000];
        Ok(SetNetworkResponse { warnings, ..SetNetworkResponse::default() })
    }
}

async fn guest() -> (AgentClient, Server, Arc<AtomicBool>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let connections = futures_util::stream::iter([Ok(theirs)]).chain(futures_util::stream::pending());
    let guest = Guest::default();
    let hangs = Arc::clone(&guest.hangs);
    let service = create_agent(Arc::new(guest));
    let mut server = Server::new().add_listener(Listener::new(connections)).register_service(service);
    server.start().await.unwrap();
    let agent = AgentClient::new(ours.into_std().unwrap().into(), Duration::from_secs(10)).unwrap();
    (agent, server, hangs)
}

/// A carrier of a namespace with one wire, "pod" to "outside", whose VMM is the test's.
struct Bed {
    carrier: Carrier,
    vmm: Arc<Vmm>,
    named: Arc<Mutex<Vec<(u32, bool)>>>,
    pod: u32,
}

impl Bed {
    fn new(socket: &mut Socket) -> Self {
        make_veth(socket, "pod", "outside");
        let pod = links(socket)["pod"];
        set_up(socket, pod);
        let (machine, theirs) = Machine::of_test();
        let vmm = Arc::new(Vmm::default());
        tokio::spawn(Arc::clone(&vmm).run(theirs));
        let named = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&named);
        let name = move |interfaces| *told.lock().unwrap() = interfaces;
        let own = open_namespace(Path::new("/proc/thread-self/ns/net")).unwrap();
        let carrier = Carrier::open(own.as_fd(), Arc::new(machine), OFFER, Box::new(name)).unwrap();
        Self { carrier, vmm, named, pod }
    }

    /// Nothing of husk's is on the interface or said to be.
    fn is_clean(&self, socket: &mut Socket) -> bool {
        let target = redirect::target(socket, self.pod).unwrap();
        let made = redirect::make_place(socket, self.pod).unwrap();
        redirect::remove_place(socket, self.pod).unwrap();
        let mut left = self.named.lock().unwrap().clone();
        left.retain(|(index, _)| *index == self.pod);
        if target.is_none() && made && left.is_empty() {
            return true;
        }
        eprintln!("a redirection to {target:?}, a place: {}, named: {left:?}", !made);
        false
    }
}

fn delete(socket: &mut Socket, index: u32) {
    socket.ask(Message::new(kinds::DELETE_LINK, 0, &link(index, 0))).unwrap();
}

/// Runs `test` in a namespace of its own and in an event loop.
fn in_bed(test: impl AsyncFnOnce(&mut Socket) + Send) {
    in_new_namespace(|socket| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // This kernel has what redirects?
        let (mut probe, taps) = (Socket::open().unwrap(), Tap::new(1).unwrap());
        let tap = links(&mut probe)[&taps.name];
        redirect::make_place(&mut probe, tap).unwrap();
        if let Err(cause) = redirect::redirect(&mut probe, tap, tap) {
            eprintln!("skipped: this kernel has no cls_matchall or no act_mirred: {cause}");
            return;
        }
        drop(taps);
        runtime.block_on(test(socket));
    });
}

#[test]
fn its_end_takes_back_all_though_the_tap_is_still_there() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        bed.carrier.look().await.unwrap();
        assert!(bed.vmm.has(bed.pod));
        assert!(redirect::target(socket, bed.pod).unwrap().is_some());
        assert!(bed.named.lock().unwrap().contains(&(bed.pod, true)));
        bed.carrier.end().await;
        assert!(!bed.vmm.has(bed.pod));
        assert!(bed.is_clean(socket));
    });
}

#[test]
fn the_kernel_moves_the_packets_where_it_can() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        let here = vhost::open(1).is_ok();
        bed.carrier.offer = Offer { vhost: true, queues: 2, ..OFFER };
        bed.carrier.look().await.unwrap();
        let descriptors = bed.vmm.devices.lock().unwrap()[&device(bed.pod)].len();
        let asked = bed.vmm.vhost.lock().unwrap().contains(&device(bed.pod));
        // Where it is not to be had, nobody asks for it again.
        assert_eq!((descriptors, asked, bed.carrier.offer.vhost), (if here { 4 } else { 2 }, here, here));
        bed.carrier.end().await;
        assert!(bed.is_clean(socket));
    });
}

#[test]
fn a_limit_excludes_vhost() {
    let mut config = config::Network { vhost: true, ..config::Network::default() };
    assert!(Offer::of(&config, 1).vhost);
    config.received_packets_s = 1;
    assert!(!Offer::of(&config, 1).vhost);
    assert!(!Offer::of(&config::Network::default(), 1).vhost);
}

#[test]
fn what_could_not_be_carried_leaves_nothing_and_is_tried_again() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        bed.vmm.refuses.lock().unwrap().push(device(bed.pod));
        let refused = bed.carrier.look().await.unwrap_err().to_string();
        assert!(refused.contains("not now"), "{refused}");
        assert!(bed.is_clean(socket));
        bed.carrier.look().await.unwrap();
        assert!(bed.vmm.has(bed.pod));
        bed.carrier.end().await;
        assert!(bed.is_clean(socket));
    });
}

#[test]
fn an_interface_that_is_not_carried_any_more_is_let_go() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        let (agent, _server, _) = guest().await;
        bed.carrier.renew(&agent).await.unwrap();
        assert!(redirect::target(socket, bed.pod).unwrap().is_some());
        // It becomes a port of a bridge.
        let bridge = Message::new(kinds::NEW_LINK, flags::CREATE | flags::EXCLUSIVE, &[0; 16]);
        let bridge = bridge.with_text(NAME, "bridge").with_nested(18, |info| info.with_text(1, "bridge"));
        if let Err(cause) = socket.ask(bridge) {
            eprintln!("skipped: this kernel has no bridges: {cause}");
            return;
        }
        let bridge = links(socket)["bridge"];
        socket.ask(Message::new(kinds::SET_LINK, 0, &link(bed.pod, UP)).with_number(10, bridge)).unwrap();
        bed.carrier.renew(&agent).await.unwrap();
        assert!(!bed.vmm.has(bed.pod));
        assert_eq!(redirect::target(socket, bed.pod).unwrap(), None);
        bed.carrier.end().await;
    });
}

#[test]
fn a_tap_that_somebody_deletes_does_not_end_the_following() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        bed.carrier.look().await.unwrap();
        let tap = redirect::target(socket, bed.pod).unwrap().unwrap();
        delete(socket, tap);
        socket.ask(Message::new(kinds::SET_LINK, 0, &link(bed.pod, UP)).with_number(MTU, 1400)).unwrap();
        bed.carrier.look().await.unwrap();
        bed.carrier.look().await.unwrap();
        bed.carrier.end().await;
    });
}

#[test]
fn an_interface_that_goes_away_meanwhile_is_no_error() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        bed.vmm.refuses.lock().unwrap().push(device(bed.pod));
        *bed.vmm.goes.lock().unwrap() = Some(bed.pod);
        bed.carrier.look().await.unwrap();
        assert!(bed.carrier.seen.interfaces.is_empty(), "a wire has two ends");
        assert!(!bed.vmm.has(bed.pod));
        bed.carrier.end().await;
    });
}

#[test]
fn the_end_does_not_wait_for_an_agent_that_hangs() {
    in_bed(async |socket| {
        make_veth(socket, "pod", "outside");
        let pod = links(socket)["pod"];
        let (machine, theirs) = Machine::of_test();
        let vmm = Arc::new(Vmm::default());
        tokio::spawn(Arc::clone(&vmm).run(theirs));
        let own = open_namespace(Path::new("/proc/thread-self/ns/net")).unwrap();
        let devices = Devices::add(own, None, Arc::new(machine), OFFER, |_| ()).await.unwrap();
        let (agent, _server, hangs) = guest().await;
        let network = Arc::new(devices.follow(agent).await.unwrap());
        network.settle().await.unwrap();
        hangs.store(true, Ordering::SeqCst);
        set_up(socket, pod);
        // Several Starts, each behind the other's call of the agent.
        let starts: Vec<_> = (0..3)
            .map(|_| {
                let network = Arc::clone(&network);
                tokio::spawn(async move { network.settle().await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let ended = tokio::time::timeout(Duration::from_secs(3), network.end()).await;
        assert!(ended.is_ok());
        for start in starts {
            start.await.unwrap().unwrap();
        }
        assert_eq!(redirect::target(socket, pod).unwrap(), None);
        assert!(!vmm.has(pod));
        // Once more is nothing.
        network.end().await;
    });
}

#[tokio::test]
async fn a_guest_cannot_fill_the_log_with_warnings() {
    let (agent, _server, _) = guest().await;
    let warnings = agent.set_network(SetNetworkRequest::default()).await.unwrap();
    assert_eq!(warnings.len(), 65);
    assert!(warnings.iter().all(|warning| warning == "\u{fffd}[2J\u{fffd}what"), "{warnings:?}");
}
