//! What takes too long for every change: `tests/suites/run long`. Not among the cases of `tests/e2e/run` otherwise.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use containerd_shim_protos::TaskClient;
use husk_tests::ctr::{Detached, Run, Runtime, must};
use husk_tests::host::{leaves_nothing, processes_of};
use husk_tests::husk::{Streams, delete, end_of_exec, shim_of};
use husk_tests::network::{Namespace, ip, prepare};
use husk_tests::sequences::shim::{make_fifo, open_fifo, read_all};
use serde_json::json;

use crate::busybox;
use crate::document::document;
use crate::streams::noise;

/// Kilobytes of memory that may be more after many execs: a page of the allocator's here and there, and not one for each.
const FLAT_KIB: u64 = 256;

#[test]
fn five_hundred_execs_twenty_at_once() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("long-execs", root.path());
        thread::scope(|scope| {
            let execs: Vec<_> = (0..20)
                .map(|lane| {
                    let container = &container;
                    scope.spawn(move || {
                        for n in 0..25 {
                            let (id, script) = (format!("e{lane}-{n}"), format!("echo {lane} {n}; exit {n}"));
                            let output = container.exec(&id, &["sh", "-c", &script]);
                            let wanted = (n, format!("{lane} {n}\n"));
                            assert_eq!((output.status, output.text()), wanted, "{}", output.errors());
                        }
                    })
                })
                .collect();
            execs.into_iter().for_each(|exec| exec.join().unwrap());
        });
    });
}

#[test]
fn a_hundred_mib_each_way_through_an_exec() {
    leaves_nothing(|| {
        let root = busybox();
        let container = Detached::idle("long-bulk", root.path());
        let input = noise(100 << 20);
        let mut running = container.start_exec("bulk", &[], &["cat"]);
        let mut stdin = running.stdin.take().unwrap();
        let output = thread::scope(|scope| {
            let input = &input;
            // The input ends when this writer does.
            scope.spawn(move || std::io::Write::write_all(&mut stdin, input).unwrap());
            running.wait()
        });
        assert_eq!((output.status, output.stdout.len()), (0, input.len()), "{}", output.errors());
        assert!(output.stdout == input, "changed on the way");
    });
}

/// A container whose processes see the agent: one without a pid namespace.
fn beside_the_agent(id: &str, root: &Path) -> Detached {
    let file = document(root, "exec sleep 100000", |document| {
        document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
        document["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    });
    let config = file.path().to_str().unwrap();
    must(&["run", "-d", "--null-io", "--runtime", Runtime::Husk.name(), "--config", config, id]);
    Detached::of(id)
}

/// One exec with its three streams, as containerd asks for it, without containerd and `ctr`, in this directory.
fn exec(shim: &TaskClient, id: &str, exec_id: &str, directory: &Path) {
    let fifo = |name: &str| {
        let path = directory.join(name);
        make_fifo(&path);
        // Neither end waits for the other; and what is said fits.
        (open_fifo(&path), path.display().to_string())
    };
    let ((input, stdin), (output, stdout), (errors, stderr)) = (fifo("in"), fifo("out"), fifo("err"));
    rustix::io::write(&input, b"word\n").unwrap();
    let streams = Streams { stdin, stdout, stderr };
    let script = "read word; echo $word; echo error >&2";
    let process = json!({
        "args": ["/bin/sh", "-c", script], "cwd": "/", "user": { "uid": 0, "gid": 0 }, "env": ["PATH=/bin"],
    });
    assert_eq!(end_of_exec(shim, id, exec_id, &process, streams), 0);
    // Before Delete, which waits for whoever reads.
    assert_eq!((read_all(output), read_all(errors)), (b"word\n".to_vec(), b"error\n".to_vec()));
    assert_eq!(delete(shim, id, exec_id).exit_status, 0);
    for name in ["in", "out", "err"] {
        fs::remove_file(directory.join(name)).unwrap();
    }
}

/// Kilobytes and descriptors of agent, shim and VMM, and the number of the guest's processes.
fn sizes(container: &Detached) -> ([(String, u64, usize); 3], String) {
    let value = |text: &str, key: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("no {key} in {text}"));
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let of_host = |program: &str| {
        let [pid] = processes_of(program)[..] else { panic!("one {program}") };
        let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        (program.to_owned(), value(&memory, "Rss:"), descriptors)
    };
    let script = "cat /proc/1/status; ls /proc/1/fd | wc -l";
    let agent = container.exec("sizes", &["/bin/sh", "-c", script]).text();
    let descriptors = agent.lines().last().unwrap().trim().parse().unwrap();
    let agent = ("agent".to_owned(), value(&agent, "RssAnon:"), descriptors);
    // The VMM's memory is the guest's, which may touch more of its own.
    let vmm = of_host("husk-vmm");
    // Without the kernel's threads, which come and go. One process, so that it counts no other of its own.
    let script = "n=0; for status in /proc/[0-9]*/status; do while read key value; do \
        [ $key = PPid: ] && [ $value != 2 ] && n=$((n + 1)); done <$status; done 2>/dev/null; echo $n";
    let processes = container.exec("count", &["/bin/sh", "-c", script]).text();
    ([agent, of_host("containerd-shim-husk-v2"), (vmm.0, 0, vmm.2)], processes)
}

#[test]
fn two_thousand_execs_leave_agent_and_shim_as_they_were() {
    leaves_nothing(|| {
        let root = busybox();
        let container = beside_the_agent("long-flat", root.path());
        let shim = shim_of("long-flat");
        let fifos = tempfile::tempdir().unwrap();
        let one = |n: usize| exec(&shim, "long-flat", &format!("e{n}"), fifos.path());
        // What grows once has grown: tables, buffers, the events that are remembered.
        (0..500).for_each(one);
        let (before, processes) = sizes(&container);
        (500..2500).for_each(one);
        let (after, processes_after) = sizes(&container);
        println!("before {before:?}, after {after:?}");
        assert_eq!(processes_after, processes, "the guest's processes");
        for ((name, kib, descriptors), (_, kib_after, descriptors_after)) in before.into_iter().zip(after) {
            assert!(kib_after <= kib + FLAT_KIB, "{name}: {kib} KiB, and {kib_after} after 2,000 execs");
            assert_eq!(descriptors_after, descriptors, "{name}'s descriptors");
        }
    });
}

#[test]
fn fifty_pods_one_after_the_other_leave_their_namespace_as_it_was() {
    prepare();
    leaves_nothing(|| {
        let root = busybox();
        let namespace = Namespace::new("long-net");
        ip("link add long-net type veth peer name eth0 netns long-net");
        ip("addr add 10.91.0.1/24 dev long-net");
        ip("link set long-net up");
        namespace.ip("addr add 10.91.0.2/24 dev eth0");
        // No address of its own making, which would come later; and with a carrier, which comes when the kernel gets to it.
        namespace.ip("link set eth0 addrgenmode none");
        namespace.ip("link set eth0 up");
        assert!(Command::new("busybox").args(["ping", "-c", "3", "10.91.0.2"]).status().unwrap().success());
        let before = namespace.listing();
        let flags = namespace.flags();
        let ping = ["busybox", "ping", "-c", "1", "-W", "10", "10.91.0.1"];
        for pod in 0..50 {
            let run = Run::on_directory(&format!("long-net-{pod}"), root.path()).flags(&[&flags[0], &flags[1]]);
            let output = run.run(&ping);
            assert_eq!(output.status, 0, "pod {pod}: {}{}", output.text(), output.errors());
            assert_eq!(namespace.listing(), before, "after pod {pod}");
        }
    });
}
