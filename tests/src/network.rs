//! The host's side of a network: namespaces and links, as administrators make them, and what CNI plugins put there.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::rootfs::PROBE;

/// Where Debian has the plugins.
const PLUGINS: &str = "/usr/lib/cni";

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|cause| panic!("{command:?}: {cause}"))
}

fn must(command: &mut Command) -> String {
    let output = output(command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}{errors}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `ip` with these words, in the host's own namespace.
///
/// # Panics
/// It fails.
pub fn ip(words: &str) -> String {
    must(Command::new("ip").args(words.split_whitespace()))
}

/// `tc` with these words, in the host's own namespace.
///
/// # Panics
/// It fails.
pub fn tc(words: &str) -> String {
    must(Command::new("tc").args(words.split_whitespace()))
}

/// What the first namespace of a host leaves (its directory is a mount then) is not a leak. And addresses of the host's are used at once.
///
/// # Panics
/// There is no iproute2, or no IPv6.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        ip("netns add husk-warm-up");
        ip("netns del husk-warm-up");
        for whose in ["all", "default"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{whose}/accept_dad"), "0").unwrap();
        }
        // What a tunnel's and a filter's modules leave: interfaces of their own in every namespace, from then on.
        let modules = ["macvlan", "ipvlan", "8021q", "sch_tbf", "cls_matchall", "act_gact", "dummy"];
        must(Command::new("modprobe").arg("-a").args(modules));
        // Where containerd's own `ctr`, other than Debian's, looks for the plugins.
        std::fs::create_dir_all("/opt/cni").unwrap();
        if let Err(cause) = std::os::unix::fs::symlink(PLUGINS, "/opt/cni/bin") {
            assert_eq!(cause.kind(), std::io::ErrorKind::AlreadyExists, "/opt/cni/bin: {cause}");
        }
    });
}

/// A network namespace with a name and a loopback that is up, as a pod gets one; gone when this is dropped.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn new(name: &str) -> Self {
        // A case that has failed may have left it.
        let _ = output(Command::new("ip").args(["netns", "del", name]));
        ip(&format!("netns add {name}"));
        let namespace = Self { name: name.to_owned() };
        namespace.ip("link set lo up");
        namespace
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// What `ctr` gets for a container to be in it.
    #[must_use]
    pub fn flags(&self) -> [String; 2] {
        ["--with-ns".to_owned(), format!("network:{}", self.path())]
    }

    /// `ip` with these words in it.
    ///
    /// # Panics
    /// It fails.
    pub fn ip(&self, words: &str) -> String {
        must(Command::new("ip").args(["-n", &self.name]).args(words.split_whitespace()))
    }

    /// `tc` with these words in it.
    ///
    /// # Panics
    /// It fails.
    pub fn tc(&self, words: &str) -> String {
        must(Command::new("tc").args(["-n", &self.name]).args(words.split_whitespace()))
    }

    /// Does something in it.
    ///
    /// # Panics
    /// It cannot be entered, or `work` panics.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Everything that is in it but what the kernel counts: links, queueing disciplines, filters, addresses, routes, rules; line by line.
    #[must_use]
    pub fn listing(&self) -> Vec<String> {
        let mut all = String::new();
        for words in ["-o -d link", "-o addr", "route show table all", "-6 route show table all", "rule", "-6 rule"] {
            all += &self.ip(words);
        }
        all += &self.tc("qdisc show");
        for link in self.links() {
            for place in ["ingress", "egress"] {
                // Without a place for filters there are none.
                let words = ["-n", &self.name, "filter", "show", "dev", &link, place];
                let filters = output(Command::new("tc").args(words)).stdout;
                all += &format!("filters of {link} {place}: {}\n", String::from_utf8_lossy(&filters).trim());
            }
        }
        all.lines().map(str::to_owned).collect()
    }

    /// The names of its interfaces.
    #[must_use]
    pub fn links(&self) -> Vec<String> {
        let name = |line: &str| line.split(": ").nth(1).unwrap().split('@').next().unwrap().to_owned();
        self.ip("-o link").lines().map(name).collect()
    }

    /// Takes its name away, as CNI's caller does at a pod's end. Who is in it stays there.
    pub fn remove(&self) {
        ip(&format!("netns del {}", self.name));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A case may have removed it.
        let _ = output(Command::new("ip").args(["netns", "del", &self.name]));
    }
}

/// A link of the host's own namespace; gone when this is dropped.
pub struct Link(String);

impl Link {
    /// One that `ip link add NAME WORDS` makes, or that somebody else will make.
    #[must_use]
    pub fn new(name: &str, words: &str) -> Self {
        let link = Self::of(name);
        ip(&format!("link add {name} {words}"));
        link
    }

    /// One that somebody else makes.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let _ = output(Command::new("ip").args(["link", "del", name]));
        Self(name.to_owned())
    }

    /// A wire in the host's namespace: `NAME` for others to build on, and `NAMEp` at its other end.
    #[must_use]
    pub fn wire(name: &str) -> Self {
        let wire = Self::new(name, &format!("type veth peer name {name}p"));
        ip(&format!("link set {name} up"));
        ip(&format!("link set {name}p up"));
        wire
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = output(Command::new("ip").args(["link", "del", &self.0]));
    }
}

/// What a chain of CNI plugins has made; taken back when this is dropped.
pub struct Cni<'a> {
    namespace: &'a Namespace,
    interface: String,
    chain: Vec<Value>,
    result: Value,
}

impl<'a> Cni<'a> {
    /// Asks each plugin of the chain to add the interface.
    ///
    /// # Panics
    /// One refuses.
    #[must_use]
    pub fn add(namespace: &'a Namespace, interface: &str, network: &str, chain: &[Value]) -> Self {
        let mut cni = Self { namespace, interface: interface.to_owned(), chain: chain.to_vec(), result: Value::Null };
        for plugin in &mut cni.chain {
            plugin["cniVersion"] = "1.0.0".into();
            plugin["name"] = network.into();
        }
        for number in 0..cni.chain.len() {
            let said = cni.ask(number, "ADD").unwrap_or_else(|cause| panic!("{}: {cause}", cni.chain[number]));
            cni.result = serde_json::from_str(&said).unwrap();
        }
        cni
    }

    /// The addresses that the interface got, without their lengths.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        self.result["ips"].as_array().unwrap().iter().map(address).collect()
    }

    fn ask(&self, number: usize, command: &str) -> Result<String, String> {
        let mut plugin = self.chain[number].clone();
        if !self.result.is_null() {
            plugin["prevResult"] = self.result.clone();
        }
        let program = format!("{PLUGINS}/{}", plugin["type"].as_str().unwrap());
        let mut child = Command::new(program)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &self.namespace.name)
            .env("CNI_NETNS", self.namespace.path())
            .env("CNI_IFNAME", &self.interface)
            .env("CNI_PATH", PLUGINS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(plugin.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() { Ok(said) } else { Err(said + &String::from_utf8_lossy(&output.stderr)) }
    }
}

impl Drop for Cni<'_> {
    fn drop(&mut self) {
        for number in (0..self.chain.len()).rev() {
            if let Err(cause) = self.ask(number, "DEL") {
                eprintln!("CNI DEL: {cause}");
            }
        }
    }
}

/// The plugin for addresses, of these networks, with default routes.
#[must_use]
pub fn host_local(networks: &[&str]) -> Value {
    let ranges: Vec<Value> = networks.iter().map(|network| json!([{ "subnet": network }])).collect();
    let default =
        |network: &&str| if network.contains(':') { json!({ "dst": "::/0" }) } else { json!({ "dst": "0.0.0.0/0" }) };
    json!({ "type": "host-local", "ranges": ranges, "routes": networks.iter().map(default).collect::<Vec<_>>() })
}

/// A server of [`crate::talk`] on the host; ended when this is dropped.
pub struct Server(Child);

impl Server {
    /// In the host's own namespace.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn here(port: u16) -> Self {
        Self::start(Command::new(PROBE).args(["serve", &port.to_string()]))
    }

    /// In this one.
    ///
    /// # Panics
    /// It does not start.
    #[must_use]
    pub fn inside(namespace: &Namespace, port: u16) -> Self {
        Self::start(Command::new("ip").args(["netns", "exec", &namespace.name, PROBE, "serve", &port.to_string()]))
    }

    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "serving\n", "{command:?}");
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
