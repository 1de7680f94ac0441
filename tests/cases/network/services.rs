//! What people run: a web server, a resolver, apt and iperf3, all of Debian.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use husk_tests::ctr::{Run, Runtime};
use husk_tests::debian::Debian;
use husk_tests::network::{Cni, Namespace};
use husk_tests::session::Session;
use serde_json::Value;

use super::{GATEWAYS, bridge_link, case, on_bridge};

/// The web server's name.
const NAME: &str = "web.husk.test";
/// Serves what is below /srv.
const NGINX: &str =
    "worker_processes 1;\nevents {}\nhttp { access_log off; server { listen 80; listen [::]:80; root /srv; } }\n";

/// A program of the host's that serves; killed when this is dropped.
struct Daemon(Child);

impl Daemon {
    /// Starts it; it is ready when it has said `ready`, on its standard error or output.
    fn start(words: &[&str], ready: &str) -> Self {
        let mut shell = Command::new("sh");
        // One stream of both; the program is the child itself.
        shell.args(["-c", "exec \"$@\" 2>&1", "sh"]).args(words);
        let mut child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        while !said.contains(ready) {
            let count = lines.read_line(&mut said).unwrap();
            assert_ne!(count, 0, "{words:?} has ended: {said}");
        }
        // Goes on reading, so that it is never held up.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A shell in a Debian, in the namespace.
fn session(id: &str, debian: &Debian, namespace: &Namespace) -> Session {
    let flags = namespace.flags();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let run = Run::on_directory(id, debian.path()).runtime(Runtime::Husk);
    Session::start(&run.flags(&[&flags[0], &flags[1], "--env", path]))
}

/// A package `husk-greeting`, whose program says `said`, and the list of packages that names it.
fn mirror(directory: &Path, said: &str) {
    let built = tempfile::tempdir().unwrap();
    let write = |path: &str, contents: &str| {
        let path = built.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    };
    let control = "Package: husk-greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: husk <husk@husk.test>\nDescription: a greeting\n";
    write("DEBIAN/control", control);
    write("usr/share/husk-greeting/text", said);
    fs::set_permissions(built.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    fs::create_dir_all(directory).unwrap();
    let package = directory.join("husk-greeting.deb");
    let output =
        Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).args([built.path(), &package]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "dpkg-deb: {}", String::from_utf8_lossy(&output.stderr));
    let sum = Command::new("sha256sum").arg(&package).output().unwrap().stdout;
    let sum = String::from_utf8_lossy(&sum);
    let (sum, size) = (sum.split(' ').next().unwrap(), fs::metadata(&package).unwrap().len());
    let packages = format!("{control}Filename: ./husk-greeting.deb\nSize: {size}\nSHA256: {sum}\n");
    fs::write(directory.join("Packages"), packages).unwrap();
}

#[test]
fn a_web_server_is_found_by_name_and_serves_pages_and_packages() {
    case(|| {
        let _bridge = bridge_link();
        let names = ["web-a", "web-b"].map(Namespace::new);
        let cnis: Vec<Cni<'_>> = names.iter().map(on_bridge).collect();
        let (server, client) = (Debian::new(), Debian::new());
        server.write("/etc/nginx/husk.conf", NGINX);
        mirror(&server.path().join("srv/mirror"), "hello from a package\n");
        let mut web = session("web-a", &server, &names[0]);
        // Four megabytes that nothing makes smaller.
        web.must(
            "mkdir -p /var/log/nginx /var/lib/nginx && head -c 4194304 /dev/urandom >/srv/large && chmod -R a+rX /srv",
        );
        web.must("nginx -c /etc/nginx/husk.conf");
        let sum = web.must("sha256sum </srv/large");

        // The resolver, on the bridge.
        let addresses = cnis[0].addresses();
        let records: Vec<String> = addresses.iter().map(|address| format!("--address=/{NAME}/{address}")).collect();
        let listen = format!("--listen-address={}", GATEWAYS[0]);
        let options =
            ["dnsmasq", "--conf-file=/dev/null", "--no-daemon", "--bind-interfaces", "--no-resolv", "--no-hosts"];
        let words: Vec<&str> =
            options.into_iter().chain([&*listen]).chain(records.iter().map(|record| &**record)).collect();
        let _resolver = Daemon::start(&words, "started");
        client.write("/etc/resolv.conf", &format!("nameserver {}\n", GATEWAYS[0]));
        client.write("/etc/apt/sources.list", &format!("deb [trusted=yes] http://{NAME}/mirror ./\n"));
        let mut pod = session("web-b", &client, &names[1]);
        let found = pod.must(&format!("getent ahosts {NAME}"));
        assert!(addresses.iter().all(|address| found.contains(&**address)), "{addresses:?}: {found}");
        assert_ne!(pod.ask("getent ahosts nobody.husk.test").0, 0);
        for host in [NAME.to_owned(), addresses[0].clone(), format!("[{}]", addresses[1])] {
            let (status, got) = pod.ask(&format!("busybox wget -q -O - http://{host}/large | sha256sum"));
            assert_eq!((status, &*got), (0, &*sum), "{host}");
        }
        // Several at once.
        let many = format!(
            "for n in 1 2 3 4 5 6 7 8; do busybox wget -q -O /tmp/large.$n http://{NAME}/large & done; wait; sha256sum /tmp/large.* | cut -d' ' -f1 | uniq -c"
        );
        let got = pod.must(&many);
        assert_eq!(got.split_whitespace().collect::<Vec<_>>(), ["8", sum.split(' ').next().unwrap()]);
        assert_ne!(pod.ask(&format!("busybox wget -q -O - http://{NAME}/missing")).0, 0);

        // With its own user for what comes from outside, as it is.
        pod.must("rm -rf /etc/apt/sources.list.d");
        let said = pod.must("apt-get update");
        assert!(said.contains(&format!("http://{NAME}/mirror")) && !said.contains("Err:"), "{said}");
        let said = pod.must("DEBIAN_FRONTEND=noninteractive apt-get install -y husk-greeting");
        assert!(said.contains("Setting up husk-greeting"), "{said}");
        assert_eq!(pod.must("cat /usr/share/husk-greeting/text"), "hello from a package");
        assert_eq!((pod.end(), web.end()), (0, 0));
    });
}

#[test]
fn iperf3_moves_bytes_both_ways() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("iperf-a");
        let _cni = on_bridge(&namespace);
        let debian = Debian::new();
        let mut pod = session("iperf-a", &debian, &namespace);
        let _server = Daemon::start(&["iperf3", "--server", "--forceflush"], "Server listening");
        const BYTES: u64 = 32 << 20;
        for (gateway, way, words) in [
            (GATEWAYS[0], "tcp there", "-n 32M"),
            (GATEWAYS[0], "tcp back", "-n 32M -R"),
            (GATEWAYS[1], "tcp of IPv6 there, 4 streams", "-n 32M -P 4"),
            (GATEWAYS[1], "tcp of IPv6 back, 4 streams", "-n 32M -P 4 -R"),
            (GATEWAYS[0], "udp there", "-u -b 4M -n 1M"),
            (GATEWAYS[0], "udp back", "-u -b 4M -n 1M -R"),
        ] {
            let (status, said) = pod.ask(&format!("iperf3 -J -c {gateway} {words}"));
            let result: Value = serde_json::from_str(&said).unwrap_or_else(|cause| panic!("{way}: {cause}: {said}"));
            assert!(status == 0 && result["error"].is_null(), "{way}: {said}");
            let end = &result["end"];
            if words.contains("-u") {
                // Slow enough for an emulated host that others keep busy; a stall of a second loses what comes meanwhile.
                let lost = end["sum"]["lost_percent"].as_f64().unwrap();
                assert!(lost < 50.0 && end["sum"]["bytes"].as_u64().unwrap() >= 1 << 20, "{way}: {}", end["sum"]);
            } else {
                let received = end["sum_received"]["bytes"].as_u64().unwrap();
                // The last ones may be under way when the sender says that it is done.
                assert!(received >= BYTES * 9 / 10, "{way}: {}", end["sum_received"]);
            }
            let speed = end["sum_received"]["bits_per_second"].as_f64().or(end["sum"]["bits_per_second"].as_f64());
            println!("{way}: {:.0} Mbit/s", speed.unwrap() / 1e6);
        }
        assert_eq!(pod.end(), 0);
    });
}
