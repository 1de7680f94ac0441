//! Two network namespaces in the place of host and guest: what stands in the one as the shim would send it, and as `ip` shows it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use husk_protocol::agent::{Interface, SetNetworkRequest};
use husk_protocol::netlink::{Message, Socket, flags, kinds, split, text};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::super::devices::Devices;
use super::super::{Network, NetworkError};

/// Names of other ends.
static PEERS: AtomicU32 = AtomicU32::new(0);

/// A network namespace, in which this thread is or was.
pub struct Namespace {
    descriptor: OwnedFd,
    /// Where the other ends of its interfaces are.
    beyond: Option<Box<Self>>,
}

impl Namespace {
    /// A new one.
    fn new() -> io::Result<Self> {
        let beyond = Some(Box::new(Self::alone()?));
        Ok(Self { beyond, ..Self::alone()? })
    }

    fn alone() -> io::Result<Self> {
        // SAFETY: touches no memory; the thread is the test's own, and nothing else runs on it.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let descriptor = openat(CWD, "/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        crate::boot::loopback_up()?;
        // The kernel's own addresses come some time later; the tests give one where it matters.
        std::fs::write("/proc/sys/net/ipv6/conf/default/addr_gen_mode", "1")?;
        Ok(Self { descriptor, beyond: None })
    }

    pub fn enter(&self) {
        move_into_link_name_space(self.descriptor.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }

    /// Adds an interface with a peer beyond, which is up.
    pub fn add(&self, name: &str) {
        let beyond = self.beyond.as_ref().unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), beyond.descriptor.as_raw_fd());
        let peer = PEERS.fetch_add(1, Ordering::Relaxed);
        self.ip(&format!("link add {name} type veth peer name peer{peer} netns {path}"));
        beyond.ip(&format!("link set peer{peer} up"));
        self.enter();
    }

    /// Calls of `ip`, one a line; `add NAME` is [`Self::add`].
    pub fn ip(&self, calls: &str) -> String {
        self.enter();
        let mut said = String::new();
        for call in calls.lines().map(str::trim).filter(|call| !call.is_empty()) {
            if let Some(name) = call.strip_prefix("add ") {
                self.add(name);
                continue;
            }
            let output = Command::new("ip").args(call.split_whitespace()).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "ip {call}: {stderr}");
            said.push_str(&String::from_utf8(output.stdout).unwrap());
        }
        said
    }

    fn json(&self, call: &str) -> Vec<Value> {
        let said = self.ip(&format!("-j {call}"));
        if said.trim().is_empty() { Vec::new() } else { serde_json::from_str(&said).unwrap() }
    }

    /// What `ip` shows of it: links that both sides have in common, addresses, routes of all tables, rules, neighbours.
    pub fn picture(&self, links: &[&str]) -> BTreeMap<String, Vec<Value>> {
        const COMMON: [&str; 5] = ["UP", "NOARP", "PROMISC", "ALLMULTI", "MULTICAST"];
        let mut picture = BTreeMap::new();
        let mut shown = self.json("addr");
        shown.retain(|link| link["ifname"] == "lo" || links.iter().any(|name| link["ifname"] == *name));
        for link in &mut shown {
            let flags: Vec<_> =
                COMMON.iter().filter(|f| link["flags"].as_array().unwrap().contains(&(**f).into())).collect();
            let mut addresses = link["addr_info"].clone();
            for address in addresses.as_array_mut().unwrap() {
                let address = address.as_object_mut().unwrap();
                // Seconds that pass, and what the guest has on purpose.
                for passing in ["nodad", "tentative", "valid_life_time", "preferred_life_time"] {
                    address.remove(passing);
                }
            }
            addresses.as_array_mut().unwrap().sort_by_key(Value::to_string);
            *link = serde_json::json!({
                "name": link["ifname"], "mac": link["address"], "mtu": link["mtu"], "txqlen": link["txqlen"],
                "flags": flags, "addresses": addresses,
            });
        }
        shown.sort_by_key(|link| link["name"].to_string());
        picture.insert("links".to_owned(), shown);
        for list in ["-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule"] {
            picture.insert(list.to_owned(), self.json(list));
        }
        // The kernel puts IPv6 addresses to use some time later.
        picture.get_mut("-6 route show table all").unwrap().retain(|route| route["table"] != "local");
        for list in ["neigh show nud permanent", "-4 neigh show proxy", "-6 neigh show proxy"] {
            picture.insert(list.to_owned(), self.json(list));
        }
        for list in picture.values_mut() {
            for entry in list.iter_mut().filter_map(Value::as_object_mut) {
                if let Some(flags) = entry.get_mut("flags").and_then(Value::as_array_mut) {
                    flags.retain(|flag| flag != "linkdown");
                }
            }
            list.sort_by_key(Value::to_string);
        }
        picture
    }

    /// What the shim would send of it, with interfaces and their windows.
    pub fn request(&self, windows: &[(&str, u32)]) -> SetNetworkRequest {
        self.enter();
        let mut socket = Socket::open().unwrap();
        let mut dump = |kind, body: &[u8]| socket.get(&Message::new(kind, flags::DUMP, body)).unwrap();
        let mut request = SetNetworkRequest::default();
        for link in dump(libc::RTM_GETLINK, &[0; 16]) {
            let (fixed, attributes) = split::<16>(&link).unwrap();
            let value = |kind| attributes.iter().find(|attribute| attribute.kind() == kind).unwrap();
            let name = text(value(libc::IFLA_IFNAME).value);
            let Some((_, window)) = windows.iter().find(|(of, _)| *of == name) else { continue };
            request.interfaces.push(Interface {
                index: number(&fixed[4..8]),
                window: *window,
                name,
                mac: value(libc::IFLA_ADDRESS).value.to_vec(),
                mtu: value(libc::IFLA_MTU).number().unwrap(),
                flags: number(&fixed[8..12]),
                queue_length: value(libc::IFLA_TXQLEN).number().unwrap(),
                ..Default::default()
            });
        }
        request.addresses = dump(libc::RTM_GETADDR, &[0; 8]);
        for family in [2, 10] {
            let fixed = [&[family][..], &[0; 11]].concat();
            request.routes.extend(dump(libc::RTM_GETROUTE, &fixed));
            request.rules.extend(dump(libc::RTM_GETRULE, &fixed));
            let mut proxies = fixed.clone();
            proxies[10] = libc::NTF_PROXY;
            let neighbours = dump(libc::RTM_GETNEIGH, &fixed);
            request.neighbours.extend(neighbours.into_iter().filter(|n| n[8] & 0x80 != 0));
            request.neighbours.extend(dump(libc::RTM_GETNEIGH, &proxies));
        }
        request
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes.try_into().unwrap())
}

/// Runs a test in namespaces of its own, host and guest, in a thread of its own.
pub fn in_namespaces(test: impl FnOnce(&Namespace, &mut Guest) + Send + 'static) {
    let run = || {
        let ip = Command::new("ip").arg("-V").output().map(drop);
        match ip.and_then(|()| Ok((Namespace::new()?, Namespace::new()?))) {
            Ok((host, guest)) => {
                let plugs = Plugs { namespace: guest, by_window: Mutex::default() };
                test(&host, &mut Guest { network: Network::default(), plugs });
            }
            Err(cause) => eprintln!("skipped: no network namespaces, or no `ip`: {cause}"),
        }
    };
    std::thread::spawn(run).join().unwrap();
}

/// A guest with its network.
pub struct Guest {
    network: Network,
    pub plugs: Plugs,
}

impl Guest {
    pub fn namespace(&self) -> &Namespace {
        &self.plugs.namespace
    }

    /// The RPC.
    pub fn set(&mut self, request: &SetNetworkRequest) -> Result<Vec<String>, NetworkError> {
        self.namespace().enter();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(self.network.set(request, &self.plugs))
    }

    /// Makes it what the host is, and compares.
    #[track_caller]
    pub fn follow(&mut self, host: &Namespace, windows: &[(&str, u32)]) {
        let warnings = self.set(&host.request(windows)).unwrap();
        assert_eq!(warnings, Vec::<String>::new());
        let links: Vec<_> = windows.iter().map(|(name, _)| *name).collect();
        let (wanted, is) = (host.picture(&links), self.namespace().picture(&links));
        for (list, wanted) in &wanted {
            let without = |all: &[Value], others: &[Value]| -> Vec<String> {
                all.iter().filter(|entry| !others.contains(entry)).map(Value::to_string).collect()
            };
            let is = &is[list];
            assert!(
                is == wanted,
                "{list}: only guest: {:#?}, only host: {:#?}",
                without(is, wanted),
                without(wanted, is)
            );
        }
    }
}

/// Windows with an interface each, which comes when it is looked for.
pub struct Plugs {
    namespace: Namespace,
    pub by_window: Mutex<BTreeMap<u32, u32>>,
}

impl Devices for Plugs {
    fn find(&self, window: u32) -> io::Result<u32> {
        if window > 100 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "an empty window"));
        }
        let mut plugs = self.by_window.lock().unwrap();
        if let Some(index) = plugs.get(&window) {
            return Ok(*index);
        }
        // As the kernel names them.
        let links = self.namespace.json("link");
        let taken = |name: &String| links.iter().any(|link| link["ifname"] == name.as_str());
        let name = (0..).map(|number| format!("eth{number}")).find(|name| !taken(name)).unwrap();
        self.namespace.add(&name);
        let links = self.namespace.json("link");
        let made = links.iter().find(|link| link["ifname"] == name.as_str()).unwrap();
        let index = u32::try_from(made["ifindex"].as_u64().unwrap()).unwrap();
        plugs.insert(window, index);
        Ok(index)
    }

    async fn release(&self, window: u32) -> io::Result<()> {
        let index = self.by_window.lock().unwrap().remove(&window).unwrap();
        let body = [&[0; 4][..], &index.to_ne_bytes(), &[0; 8]].concat();
        let mut socket = Socket::open().map_err(io::Error::other)?;
        socket.ask(Message::new(kinds::DELETE_LINK, 0, &body)).map_err(io::Error::other)
    }
}
