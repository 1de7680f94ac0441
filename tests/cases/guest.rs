//! What a container sees of its machine.

use std::fs;
use std::io::Write;

use husk_tests::ctr::{Run, Runtime, ctr, must, task};
use husk_tests::host::leaves_nothing;
use serde_json::json;

use crate::busybox;
use crate::document::document;

/// `ctr` mounts no cgroups by itself.
const CGROUPS: [&str; 2] = ["--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro"];

#[test]
fn the_kernel_is_the_guests_own() {
    leaves_nothing(|| {
        let root = busybox();
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let with = |id: &str, runtime| Run::on_directory(id, root.path()).runtime(runtime).run(&["uname", "-r"]).text();
        assert_eq!(with("runc", Runtime::Runc), host);
        let guest = with("husk", Runtime::Husk);
        assert!(guest != host && guest.trim().ends_with("-husk"), "{guest}");
    });
}

#[test]
fn kvm_shows_the_machine_while_it_runs() {
    let machines =
        || fs::read_dir("/sys/kernel/debug/kvm").unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    leaves_nothing(|| {
        let root = busybox();
        let before = machines();
        let running = Run::on_directory("kvm", root.path())
            .start(&["sh", "-c", "touch /started; exec sleep 1000"])
            .has_made(&root.path().join("started"));
        assert_eq!(machines(), before + 1);
        must(&["task", "kill", "-s", "KILL", "kvm"]);
        assert_eq!(running.wait().status, 137);
    });
}

#[test]
fn namespaces_and_identity() {
    leaves_nothing(|| {
        let root = busybox();
        let script = "hostname; echo $$; id -u; id -g; pwd; echo $FOO; ps | grep -c [h]usk; cat /proc/self/cgroup; echo opened >/dev/stdout";
        // containerd 1.6's ctr has no flag for the user.
        let file = document(root.path(), script, |document| {
            document["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            document["process"]["cwd"] = "/tmp".into();
            document["process"]["env"] = json!(["PATH=/bin", "FOO=bar"]);
        });
        let config = file.path().to_str().unwrap();
        let output = ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "identity"]);
        // Who asks for no hostname has the host's, as with runc.
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let wanted = host + "1\n1000\n1000\n/tmp\nbar\n0\n0::/pod/identity\nopened\n";
        assert_eq!(output.text(), wanted, "status {}: {}{}", output.status, output.text(), output.errors());
    });
}

#[test]
fn the_root_is_the_hosts_directory() {
    leaves_nothing(|| {
        let root = busybox();
        let script =
            "echo from guest >/written; chmod 640 /written; chown 5:6 /written; ln -s written /link; readlink /link";
        let output = Run::on_directory("files", root.path()).run(&["sh", "-c", script]);
        assert_eq!((output.status, &*output.text()), (0, "written\n"), "{}", output.errors());
        let path = root.path().join("written");
        assert_eq!(fs::read_to_string(&path).unwrap(), "from guest\n");
        use std::os::unix::fs::MetadataExt;
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o640, 5, 6));
    });
}

#[test]
fn a_read_only_root_is_read_only() {
    leaves_nothing(|| {
        let root = busybox();
        let output = Run::on_directory("ro", root.path()).flags(&["--read-only"]).run(&["touch", "/x"]);
        assert!(output.status != 0 && output.errors().contains("Read-only file system"), "{}", output.errors());
        assert!(!root.path().join("x").exists());
    });
}

#[test]
fn a_memory_limit_sizes_the_machine_and_holds() {
    leaves_nothing(|| {
        let root = busybox();
        let run = Run::on_directory("limit", root.path()).flags(&["--memory-limit", "67108864"]).flags(&CGROUPS);
        let output = run.run(&[
            "sh",
            "-c",
            "grep MemTotal /proc/meminfo; cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/memory.max",
        ]);
        let text = output.text();
        let kib: u64 = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!((96 * 1024..128 * 1024).contains(&kib), "64 MiB and 64 of overhead, less the kernel: {text}");
        assert!(text.ends_with("\n67108864\n"), "{text}{}", output.errors());
        // A program that takes more is killed, and nothing else is.
        let output = run.run(&["dd", "if=/dev/zero", "of=/dev/null", "bs=96M", "count=1"]);
        assert_eq!(output.status, 137, "{}", output.errors());
    });
}

#[test]
fn a_cpu_quota_holds() {
    leaves_nothing(|| {
        let root = busybox();
        let run = Run::on_directory("quota", root.path()).flags(&["--cpus", "0.5"]).flags(&CGROUPS);
        let script = "grep -c ^processor /proc/cpuinfo; cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/cpu.max";
        let output = run.run(&["sh", "-c", script]);
        assert_eq!(output.text(), "1\n50000 100000\n", "{}", output.errors());
    });
}

#[test]
fn a_privileged_container_has_all_capabilities() {
    leaves_nothing(|| {
        let root = busybox();
        let run = Run::on_directory("privileged", root.path()).flags(&["--privileged"]);
        let output = run.run(&["sh", "-c", "grep CapEff /proc/self/status"]);
        // All that the guest's kernel knows; the document asks for no more.
        let all = fs::read_to_string("/proc/self/status").unwrap();
        let all = all.lines().find(|line| line.starts_with("CapEff")).unwrap();
        assert_eq!(output.text(), format!("{all}\n"), "{}", output.errors());
    });
}

#[test]
fn a_machine_with_two_cpus_uses_both() {
    leaves_nothing(|| {
        let root = busybox();
        let mut config = tempfile::NamedTempFile::new().unwrap();
        config.write_all(b"[vm]\nvcpus = 2\n").unwrap();
        let run = Run::on_directory("cpus", root.path());
        let run = run.flags(&["--runtime-config-path", config.path().to_str().unwrap()]);
        // The second CPU comes up after the container's start: it is waited for. Then each has to do something.
        let script = "while [ \"$(grep -c ^processor /proc/cpuinfo)\" -lt 2 ]; do :; done; \
            grep -c ^processor /proc/cpuinfo; for cpu in 0 1; do taskset -c $cpu cut -d' ' -f39 /proc/self/stat; done";
        let output = run.run(&["sh", "-c", script]);
        assert_eq!(output.text(), "2\n0\n1\n", "{}", output.errors());
    });
}

#[test]
fn the_tasks_process_is_in_the_pods_cgroup() {
    leaves_nothing(|| {
        let root = busybox();
        let running = Run::on_directory("cgroup", root.path())
            .start(&["sh", "-c", "touch /started; exec sleep 1000"])
            .has_made(&root.path().join("started"));
        let pid = task("cgroup").unwrap().0;
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap(), "0::/default/husk-cgroup\n");
        must(&["task", "kill", "-s", "KILL", "cgroup"]);
        assert_eq!(running.wait().status, 137);
    });
}
