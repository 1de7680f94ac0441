use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use husk_protocol::agent::{Agent, SetNetworkResponse, create_agent};
use husk_protocol::control::{
    Envelope, Failure, Message as FromVmm, NetRate, Reply, Request, Socket as ControlSocket, SocketError,
};
use husk_protocol::netlink::{Message, flags};
use tokio::net::UnixStream;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use super::super::namespace::open_namespace;
use super::super::redirect::tests::redirects;
use super::super::scan::UP;
use super::super::tests::{in_new_namespace, links as all_links, make_veth, make_veth_at, set_up};
use super::super::{Devices, vhost};
use super::*;

/// IFLA_IFNAME, IFLA_MTU.
const NAME: u16 = 3;
const MTU: u16 = 4;

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
    /// It keeps its devices, whatever it is told.
    hangs: AtomicBool,
    /// Windows given so far.
    windows: AtomicU32,
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
                        Ok(Reply::Net { window: self.windows.fetch_add(1, Ordering::SeqCst) })
                    }
                }
                Request::RemoveNet { .. } if self.hangs.load(Ordering::SeqCst) => {
                    Err(Failure { message: "hangs".into() })
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

/// The interfaces that a guest was told, each time.
type Told = Arc<Mutex<Vec<Vec<agent::Interface>>>>;

/// Takes whatever it is told, until it hangs.
#[derive(Default)]
struct Guest {
    hangs: Arc<AtomicBool>,
    told: Told,
}

#[async_trait]
impl Agent for Guest {
    async fn set_network(&self, _: &TtrpcContext, request: SetNetworkRequest) -> ttrpc::Result<SetNetworkResponse> {
        self.told.lock().unwrap().push(request.interfaces);
        if self.hangs.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        // As no honest one says it.
        let warnings = vec!["\x1b[2J\nwhat".into(); 1000];
        Ok(SetNetworkResponse { warnings, ..SetNetworkResponse::default() })
    }
}

async fn guest() -> (AgentClient, Server, Arc<AtomicBool>, Told) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let connections = futures_util::stream::iter([Ok(theirs)]).chain(futures_util::stream::pending());
    let guest = Guest::default();
    let (hangs, told) = (Arc::clone(&guest.hangs), Arc::clone(&guest.told));
    let service = create_agent(Arc::new(guest));
    let mut server = Server::new().add_listener(Listener::new(connections)).register_service(service);
    server.start().await.unwrap();
    let agent = AgentClient::new(ours.into_std().unwrap().into(), Duration::from_secs(10)).unwrap();
    (agent, server, hangs, told)
}

/// A carrier of a namespace with one wire, "pod" to "outside", whose VMM is the test's.
struct Bed {
    carrier: Carrier,
    vmm: Arc<Vmm>,
    named: Arc<Mutex<Vec<Trace>>>,
    pod: u32,
}

impl Bed {
    fn new(socket: &mut Socket) -> Self {
        Self::with(socket, OFFER)
    }

    fn with(socket: &mut Socket, offer: Offer) -> Self {
        make_veth(socket, "pod", "outside");
        let pod = all_links(socket)["pod"];
        set_up(socket, pod);
        let (machine, theirs) = Machine::of_test();
        let vmm = Arc::new(Vmm::default());
        tokio::spawn(Arc::clone(&vmm).run(theirs));
        let named = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&named);
        let name = move |traces: &[Trace]| *told.lock().unwrap() = traces.to_vec();
        let own = open_namespace(Path::new("/proc/thread-self/ns/net")).unwrap();
        let carrier = Carrier::open(own.as_fd(), Arc::new(machine), offer, Box::new(name)).unwrap();
        Self { carrier, vmm, named, pod }
    }

    /// The tap of the interface.
    fn tap(&self, socket: &mut Socket) -> u32 {
        redirect::target(socket, self.pod).unwrap().unwrap()
    }

    /// Nothing of husk's is on the interface or said to be.
    fn is_clean(&self, socket: &mut Socket) -> bool {
        let target = redirect::target(socket, self.pod).unwrap();
        let made = redirect::make_place(socket, self.pod).unwrap();
        redirect::remove_place(socket, self.pod).unwrap();
        let mut left = self.named.lock().unwrap().clone();
        left.retain(|trace| trace.interface == self.pod);
        if target.is_none() && made && left.is_empty() {
            return true;
        }
        eprintln!("a redirection to {target:?}, a place: {}, named: {left:?}", !made);
        false
    }
}

/// Goes on as the pod does, until what is due was done.
async fn until(carrier: &mut Carrier, agent: &AgentClient, is_done: impl Fn(&Carrier) -> bool) {
    while !is_done(carrier) {
        tokio::time::timeout(Duration::from_secs(10), carrier.changed()).await.unwrap();
        carrier.renew(agent).await.unwrap();
    }
}

fn windows_of(all: &[agent::Interface], index: u32) -> Vec<u32> {
    all.iter().filter(|interface| interface.index == index).map(|interface| interface.window).collect()
}

fn mac_of(all: &[agent::Interface], index: u32) -> Option<Vec<u8>> {
    all.iter().find(|interface| interface.index == index).map(|interface| interface.mac.clone())
}

fn delete(socket: &mut Socket, index: u32) {
    socket.ask(Message::new(kinds::DELETE_LINK, 0, &links::header(index, 0))).unwrap();
}

/// Runs `test` in a namespace of its own and in an event loop.
fn in_bed(test: impl AsyncFnOnce(&mut Socket) + Send) {
    in_new_namespace(|socket| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        if redirects(socket) {
            runtime.block_on(test(socket));
        }
    });
}

#[test]
fn its_end_takes_back_all_though_the_tap_is_still_there() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        bed.carrier.look().await.unwrap();
        assert!(bed.vmm.has(bed.pod));
        assert!(redirect::target(socket, bed.pod).unwrap().is_some());
        let tap = redirect::target(socket, bed.pod).unwrap();
        assert!(bed.named.lock().unwrap().contains(&Trace { interface: bed.pod, place: true, tap }));
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
        let (agent, _server, ..) = guest().await;
        bed.carrier.renew(&agent).await.unwrap();
        assert!(redirect::target(socket, bed.pod).unwrap().is_some());
        // It becomes a port of a bridge.
        let bridge = Message::new(kinds::NEW_LINK, flags::CREATE | flags::EXCLUSIVE, &[0; 16]);
        let bridge = bridge.with_text(NAME, "bridge").with_nested(18, |info| info.with_text(1, "bridge"));
        if let Err(cause) = socket.ask(bridge) {
            eprintln!("skipped: this kernel has no bridges: {cause}");
            return;
        }
        let bridge = all_links(socket)["bridge"];
        socket.ask(Message::new(kinds::SET_LINK, 0, &links::header(bed.pod, UP)).with_number(10, bridge)).unwrap();
        bed.carrier.renew(&agent).await.unwrap();
        assert!(!bed.vmm.has(bed.pod));
        assert_eq!(redirect::target(socket, bed.pod).unwrap(), None);
        bed.carrier.end().await;
    });
}

#[test]
fn a_tap_that_somebody_deletes_is_made_anew_and_the_guest_has_the_interface_again() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        let (agent, _server, _, told) = guest().await;
        bed.carrier.renew(&agent).await.unwrap();
        let tap = bed.tap(socket);
        delete(socket, tap);
        bed.carrier.heard().await;
        told.lock().unwrap().clear();
        bed.carrier.renew(&agent).await.unwrap();
        let again = bed.tap(socket);
        assert_ne!(again, tap);
        assert_eq!(redirect::target(socket, again).unwrap(), Some(bed.pod));
        // The driver has to let go of the first device before there is another.
        let windows: Vec<Vec<_>> = told.lock().unwrap().iter().map(|all| windows_of(all, bed.pod)).collect();
        assert_eq!(windows.len(), 2);
        assert!(windows[0].is_empty() && windows[1] > vec![0], "{windows:?}");
        // The next one is not at once: whoever deletes it goes on, perhaps.
        delete(socket, again);
        bed.carrier.renew(&agent).await.unwrap();
        assert_eq!(told.lock().unwrap().len(), 2);
        assert!(bed.carrier.due.is_some());
        until(&mut bed.carrier, &agent, |carrier| carrier.due.is_none()).await;
        assert_ne!(bed.tap(socket), again);
        bed.carrier.end().await;
        assert!(bed.is_clean(socket));
    });
}

#[test]
fn filters_that_somebody_removes_are_put_back_at_a_bounded_rate() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        let (agent, _server, _, told) = guest().await;
        bed.carrier.renew(&agent).await.unwrap();
        let tap = bed.tap(socket);
        while tokio::time::timeout(Duration::from_millis(50), bed.carrier.heard()).await.is_ok() {}
        redirect::remove_place(socket, bed.pod).unwrap();
        bed.carrier.heard().await;
        bed.carrier.renew(&agent).await.unwrap();
        assert_eq!(redirect::target(socket, bed.pod).unwrap(), Some(tap));
        assert!(bed.carrier.due.is_none());
        // Again, and those of the tap.
        redirect::undo(socket, tap).unwrap();
        bed.carrier.heard().await;
        bed.carrier.renew(&agent).await.unwrap();
        assert_eq!(redirect::target(socket, tap).unwrap(), None, "not at once");
        until(&mut bed.carrier, &agent, |carrier| carrier.due.is_none()).await;
        assert_eq!(redirect::target(socket, tap).unwrap(), Some(bed.pod));
        assert_eq!(told.lock().unwrap().len(), 1, "the guest has nothing of it");
        bed.carrier.end().await;
        assert!(bed.is_clean(socket));
    });
}

#[test]
fn an_interface_that_is_made_anew_with_its_number_is_carried_again() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        let (agent, _server, _, told) = guest().await;
        bed.carrier.renew(&agent).await.unwrap();
        let tap = bed.tap(socket);
        delete(socket, bed.pod);
        make_veth_at(socket, bed.pod, "pod", "outside");
        bed.carrier.renew(&agent).await.unwrap();
        assert_eq!((bed.tap(socket), redirect::target(socket, tap).unwrap()), (tap, Some(bed.pod)));
        let macs: Vec<_> = told.lock().unwrap().iter().map(|all| mac_of(all, bed.pod)).collect();
        assert!(macs[0].is_some() && macs.last() != macs.first(), "{macs:?}");
        bed.carrier.end().await;
        assert!(bed.is_clean(socket));
    });
}

#[test]
fn what_there_is_no_room_for_is_left_out_and_the_rest_is_followed() {
    in_bed(async |socket| {
        let mut bed = Bed::with(socket, Offer { room: 3, ..OFFER });
        let (agent, _server, _, told) = guest().await;
        bed.carrier.renew(&agent).await.unwrap();
        assert!(bed.carrier.lack.is_none());
        make_veth(socket, "a", "b");
        let (a, b) = (all_links(socket)["a"], all_links(socket)["b"]);
        bed.carrier.renew(&agent).await.unwrap();
        assert!(matches!(bed.carrier.lack, Some(NetworkError::Many { there: 4, room: 3 })));
        let out = a.max(b);
        assert!(bed.vmm.has(a.min(b)) && !bed.vmm.has(out));
        socket.ask(Message::new(kinds::SET_LINK, 0, &links::header(bed.pod, UP)).with_number(MTU, 1400)).unwrap();
        bed.carrier.renew(&agent).await.unwrap();
        let last = told.lock().unwrap().last().unwrap().clone();
        assert_eq!(last.iter().find(|interface| interface.index == bed.pod).unwrap().mtu, 1400);
        assert_eq!(last.len(), 3);
        assert!(bed.carrier.said.is_some());
        // Room again: at once, though the guest has to let go before.
        delete(socket, bed.pod);
        bed.carrier.renew(&agent).await.unwrap();
        assert!(bed.vmm.has(out) && bed.carrier.lack.is_none() && bed.carrier.said.is_none());
        assert_eq!(told.lock().unwrap().last().unwrap().len(), 2);
        // At the pod's Create it is an error.
        make_veth(socket, "c", "d");
        assert!(matches!(bed.carrier.look().await, Err(NetworkError::Many { .. })));
        bed.carrier.end().await;
    });
}

#[test]
fn tables_that_the_guest_cannot_be_told_do_not_end_the_following() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        let outside = all_links(socket)["outside"];
        set_up(socket, outside);
        let (agent, _server, _, told) = guest().await;
        bed.carrier.renew(&agent).await.unwrap();
        // RTA_MULTIPATH: 400 times by the interface. 1,000 such routes are more than 3 MiB.
        let hop = [&[8, 0, 0, 0][..], &bed.pod.to_ne_bytes()].concat();
        let route = |kind, number: u32| {
            // AF_INET, /32, in the table main, by hand, of this link: RTN_UNICAST.
            let route = Message::new(kind, flags::CREATE, &[2, 32, 0, 0, 254, 4, 253, 1, 0, 0, 0, 0]);
            let route = route.with(1, &(0x0a00_0000 + number).to_be_bytes());
            if kind == kinds::NEW_ROUTE { route.with(9, &hop.repeat(400)) } else { route }
        };
        let routes = |kind| (0..1000).map(|number| route(kind, number)).collect::<Vec<_>>();
        let all_done = |socket: &mut Socket, kind| {
            socket.play(&routes(kind)).unwrap().into_iter().for_each(|answer| answer.unwrap());
        };
        all_done(socket, kinds::NEW_ROUTE);
        socket.ask(Message::new(kinds::SET_LINK, 0, &links::header(bed.pod, UP)).with_number(MTU, 1400)).unwrap();
        bed.carrier.renew(&agent).await.unwrap();
        assert!(matches!(bed.carrier.lack, Some(NetworkError::Large)));
        let last = told.lock().unwrap().last().unwrap().clone();
        assert_eq!(last.iter().find(|interface| interface.index == bed.pod).unwrap().mtu, 1400);
        assert!(bed.carrier.told.routes.len() > 900);
        assert!(matches!(bed.carrier.look().await, Err(NetworkError::Large)));
        all_done(socket, kinds::DELETE_ROUTE);
        bed.carrier.renew(&agent).await.unwrap();
        assert!(bed.carrier.lack.is_none() && bed.carrier.told.routes.len() < 900);
        bed.carrier.end().await;
    });
}

#[test]
fn what_cannot_be_carried_is_tried_again_by_itself_and_the_others_are_followed() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        let (agent, _server, _, told) = guest().await;
        bed.vmm.refuses.lock().unwrap().push(device(bed.pod));
        bed.carrier.renew(&agent).await.unwrap();
        assert!(matches!(bed.carrier.lack, Some(NetworkError::Control(_))));
        assert_eq!(told.lock().unwrap().last().unwrap().len(), 1, "the other one");
        bed.carrier.renew(&agent).await.unwrap();
        assert!(!bed.vmm.has(bed.pod), "not at once");
        until(&mut bed.carrier, &agent, |carrier| carrier.due.is_none()).await;
        assert!(bed.vmm.has(bed.pod) && bed.carrier.lack.is_none());
        bed.carrier.end().await;
        assert!(bed.is_clean(socket));
    });
}

#[test]
fn a_machine_that_keeps_a_tap_keeps_nothing_of_it() {
    in_bed(async |socket| {
        let mut bed = Bed::new(socket);
        bed.carrier.look().await.unwrap();
        let tap = bed.tap(socket);
        bed.vmm.hangs.store(true, Ordering::SeqCst);
        bed.carrier.end().await;
        assert!(bed.vmm.has(bed.pod));
        assert!(!all_links(socket).values().any(|index| *index == tap));
        assert!(bed.is_clean(socket));
    });
}

#[test]
fn what_the_first_start_finds_too_much_is_its_error() {
    in_bed(async |socket| {
        make_veth(socket, "pod", "outside");
        let (machine, theirs) = Machine::of_test();
        tokio::spawn(Arc::new(Vmm::default()).run(theirs));
        let own = open_namespace(Path::new("/proc/thread-self/ns/net")).unwrap();
        let offer = Offer { room: 2, ..OFFER };
        let devices = Devices::add(own, None, Arc::new(machine), offer, |_| ()).await.unwrap();
        let (agent, _server, ..) = guest().await;
        let network = devices.follow(agent).await.unwrap();
        make_veth(socket, "a", "b");
        assert!(matches!(network.settle().await, Err(NetworkError::Many { there: 4, room: 2 })));
        network.settle().await.unwrap();
        network.end().await;
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
        let pod = all_links(socket)["pod"];
        let (machine, theirs) = Machine::of_test();
        let vmm = Arc::new(Vmm::default());
        tokio::spawn(Arc::clone(&vmm).run(theirs));
        let own = open_namespace(Path::new("/proc/thread-self/ns/net")).unwrap();
        let devices = Devices::add(own, None, Arc::new(machine), OFFER, |_| ()).await.unwrap();
        let (agent, _server, hangs, _) = guest().await;
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
    let (agent, _server, ..) = guest().await;
    let warnings = agent.set_network(SetNetworkRequest::default()).await.unwrap();
    assert_eq!(warnings.len(), 65);
    assert!(warnings.iter().all(|warning| warning == "\u{fffd}[2J\u{fffd}what"), "{warnings:?}");
}
