//! One namespace, several containers and pods, one after the other or at once; and what they leave there.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::ctr::{Detached, must, wait_for_state};
use husk_tests::host::{kill_processes_of, processes_of, remove_fifos, wait_for_end};
use husk_tests::network::{Namespace, Server};

use super::{GATEWAYS, PORT, bridge_link, case, on_bridge, root, run, same, session, talk};
use crate::refused;
use husk_tests::ctr::Runtime;

/// A pod in the namespace that runs until it is killed.
fn detached(id: &str, root: &tempfile::TempDir, namespace: &Namespace) -> Detached {
    let flags = namespace.flags();
    Detached::start(id, root.path(), &[&flags[0], &flags[1]], &["/bin/sleep", "100000"])
}

/// Waits until containerd has run `delete` for a shim that was killed: its directory is the last that goes.
fn is_deleted(id: &str) {
    let (directory, begin) = (Path::new("/run/husk/default").join(id), Instant::now());
    while directory.exists() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{} is still there", directory.display());
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn each_pod_leaves_the_namespace_as_it_was() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("again-a");
        let _cni = on_bridge(&namespace);
        let before = namespace.listing();
        let root = root();
        let _server = Server::here(PORT);
        for id in ["again-1", "again-2"] {
            let mut husk = session(id, &root, &namespace);
            assert_ne!(namespace.listing(), before);
            talk(&mut husk, GATEWAYS[0], 0);
            assert_eq!(husk.end(), 0);
            same(&namespace.listing(), &before, &format!("after {id}"));
        }
        // A place for filters that was there stays there.
        namespace.tc("qdisc add dev eth0 clsact");
        let before = namespace.listing();
        let husk = session("again-3", &root, &namespace);
        assert_eq!(husk.end(), 0);
        same(&namespace.listing(), &before, "with a place for filters");
    });
}

#[test]
fn a_killed_pod_leaves_room_for_the_next() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("killed-a");
        let _cni = on_bridge(&namespace);
        let before = namespace.listing();
        let root = root();
        // The filters of the first are there, and nobody's.
        let first = detached("killed-1", &root, &namespace);
        let with = namespace.tc("filter show dev eth0 ingress");
        assert!(with.contains("mirred"), "{with}");
        let ended: Vec<i32> = ["containerd-shim-husk-v2", "husk-vmm"].into_iter().flat_map(processes_of).collect();
        // Stopped first, so that neither sees the other's end.
        let pids: Vec<String> = ended.iter().map(ToString::to_string).collect();
        assert!(Command::new("kill").arg("-KILL").args(&pids).status().unwrap().success());
        ended.iter().for_each(|pid| wait_for_end(pid.cast_unsigned()));
        drop(first);
        is_deleted("killed-1");
        same(&namespace.listing(), &before, "after delete, of shim and VMM");
        let mut next = session("killed-2", &root, &namespace);
        let _server = Server::here(PORT);
        talk(&mut next, GATEWAYS[0], 0);
        assert_eq!(next.end(), 0);
        same(&namespace.listing(), &before, "at the end");
        remove_fifos();

        // The machine alone: the shim sees it.
        let lost = detached("killed-5", &root, &namespace);
        kill_processes_of("husk-vmm");
        wait_for_state("killed-5", "STOPPED");
        drop(lost);
        same(&namespace.listing(), &before, "after the VMM's end");
        remove_fifos();

        // `delete` alone takes back what the shim could not.
        let second = detached("killed-3", &root, &namespace);
        let shims = processes_of("containerd-shim-husk-v2");
        kill_processes_of("containerd-shim-husk-v2");
        shims.iter().for_each(|pid| wait_for_end(pid.cast_unsigned()));
        drop(second);
        is_deleted("killed-3");
        same(&namespace.listing(), &before, "after delete");
        remove_fifos();

        // What nobody has taken back (the host's containerd was killed too) is no obstacle: a redirection to a tap that is gone.
        namespace.tc("qdisc add dev eth0 clsact");
        let before = namespace.listing();
        namespace.ip("link add husk7 type dummy");
        namespace.tc("filter add dev eth0 ingress prio 65520 matchall action mirred egress redirect dev husk7");
        namespace.ip("link del husk7");
        let mut last = session("killed-4", &root, &namespace);
        talk(&mut last, GATEWAYS[0], 0);
        assert_eq!(last.end(), 0);
        same(&namespace.listing(), &before, "at the end");
    });
}

#[test]
fn a_namespace_belongs_to_one_pod_at_a_time() {
    case(|| {
        let _bridge = bridge_link();
        let namespace = Namespace::new("both-a");
        let _cni = on_bridge(&namespace);
        let before = namespace.listing();
        let (root, other) = (root(), root());
        let mut husk = session("both-1", &root, &namespace);
        let with = namespace.listing();
        let second = run(Runtime::Husk, "both-2", &other, &namespace).run(&["true"]);
        refused(&second, &["eth0", "belongs to one pod at a time"]);
        same(&namespace.listing(), &with, "the first one's are untouched");
        let _server = Server::here(PORT);
        talk(&mut husk, GATEWAYS[0], 0);
        assert_eq!(husk.end(), 0);
        same(&namespace.listing(), &before, "at the end");
        must(&["task", "ls"]);
    });
}
