//! Everything that can be wrong with a host, an installation, a configuration or a guest: one clear error in containerd's
//! answer, in time, and nothing left.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use husk_protocol::runc;
use husk_shim::VERSION;
use husk_tests::aside::Aside;
use husk_tests::ctr::{Output, Run, Runtime, ctr, must};
use husk_tests::host::{leaves_nothing, patience, processes_of, wait_for_end};
use husk_tests::rootfs;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use tempfile::TempDir;

use crate::{busybox, configured, refused};

/// Time for a failure to be told, on a machine that is as fast as a real one, or is an emulated one of its own.
const LIMIT: Duration = Duration::from_secs(15);
/// The guest that misbehaves (`tests/src/bin/husk-test-guest.rs`), as an initrd.
pub const TEST_GUEST: &str = "/husk-testbed/test-guest.initrd";

/// Fails in time, in words.
fn fails(what: &str, words: &[&str], run: impl FnOnce() -> Output) {
    let begin = Instant::now();
    let output = run();
    let took = begin.elapsed();
    // For whoever reads the log: what people see.
    println!("    {what} ({:.1} s): {}", took.as_secs_f64(), output.errors().trim_end());
    refused(&output, words);
    assert!(took < LIMIT * patience(), "{what}: told after {took:?}");
}

pub fn installed(name: &str) -> PathBuf {
    Path::new("/usr/lib/husk").join(VERSION).join(name)
}

/// A mount that is gone when this is dropped.
pub struct Mounted(pub PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

fn run(id: &str, root: &TempDir) -> Output {
    Run::on_directory(id, root.path()).run(&["true"])
}

#[test]
fn a_kernel_or_an_initrd_that_is_none() {
    leaves_nothing(|| {
        let root = busybox();
        let (kernel, initrd) = (installed("vmlinux"), installed("initrd"));
        let whole = fs::read(&kernel).unwrap();
        {
            let _none = Aside::move_away(&kernel);
            fails("no kernel", &["machine:", "vmlinux", "No such file", "husk version"], || run("nokernel", &root));
        }
        for (what, content) in [("text", &b"no kernel\n"[..]), ("empty", b""), ("half", &whole[..whole.len() / 2])] {
            let _replaced = Aside::replace(&kernel, content);
            fails(&format!("a kernel: {what}"), &["machine:", "cannot load the kernel", "vmlinux"], || {
                run("badkernel", &root)
            });
        }
        {
            // Its headers are whole, its first instruction is a breakpoint without a handler.
            let mut broken = whole.clone();
            broken[0x10000..].fill(0xcc);
            let _replaced = Aside::replace(&kernel, &broken);
            fails("a kernel of breakpoints", &["boot:", "triple fault", "vmlinux"], || run("brokenkernel", &root));
        }
        {
            let _none = Aside::move_away(&initrd);
            fails("no initrd", &["machine:", "initrd", "No such file"], || run("noinitrd", &root));
        }
        let _replaced = Aside::replace(&initrd, b"no archive");
        fails("an initrd that is text", &["boot:", "Kernel panic", "initrd"], || run("badinitrd", &root));
    });
}

#[test]
fn a_root_that_is_none() {
    leaves_nothing(|| {
        let empty = tempfile::tempdir().unwrap();
        fails("an empty root", &["container:", "/bin/true", "no such file"], || {
            Run::on_directory("emptyroot", empty.path()).run(&["/bin/true"])
        });
        let file = empty.path().join("file");
        fs::write(&file, "").unwrap();
        fails("a file as the root", &["rootfs:", "file"], || Run::on_directory("fileroot", &file).run(&["true"]));
        fails("no root", &["rootfs:", "/nowhere/at/all"], || {
            Run::on_directory("noroot", Path::new("/nowhere/at/all")).run(&["true"])
        });
    });
}

#[test]
fn too_little_and_too_much_memory() {
    leaves_nothing(|| {
        let root = busybox();
        let limited = |id: &str, bytes: u64| {
            Run::on_directory(id, root.path()).flags(&["--memory-limit", &bytes.to_string()]).run(&["true"])
        };
        // As with runc, a small program runs in 1 MiB.
        let begin = Instant::now();
        let output = limited("small", 1 << 20);
        assert!(
            output.status == 0 && begin.elapsed() < LIMIT * patience(),
            "{:?}: {}",
            begin.elapsed(),
            output.errors()
        );
        // In one page no program runs. The kernel kills it before its program or after: the one is told in words, the
        // other is a status, as with runc.
        let output = limited("page", 1 << 12);
        let is_told = output.errors().contains("is the memory limit too low?");
        assert!(output.status == 137 || (output.status == 1 && is_told), "{}: {}", output.status, output.errors());
        fails("vm.memory_mib of 1", &["configuration:", "vm.memory_mib = 1", "at least 64"], || {
            configured("onemib", root.path(), "[vm]\nmemory_mib = 1\n").0
        });
        for (id, bytes) in [("large", 1 << 40), ("huge", 1 << 60)] {
            fails(
                &format!("{bytes} bytes"),
                &["machine:", "this host has", "lower the container's memory limit"],
                || limited(id, bytes),
            );
        }
        let wanted = ["machine:", "vm.memory_mib", "this host has"];
        fails("vm.memory_mib of 1 TiB", &wanted, || {
            configured("configured", root.path(), "[vm]\nmemory_mib = 1048576\n").0
        });
    });
}

#[test]
fn a_configuration_that_is_wrong() {
    leaves_nothing(|| {
        let root = busybox();
        let with = |id: &str, path: &str| {
            Run::on_directory(id, root.path()).flags(&["--runtime-config-path", path]).run(&["true"])
        };
        fails("no file", &["configuration:", "/nowhere/husk.toml", "No such file"], || {
            with("noconfig", "/nowhere/husk.toml")
        });
        fails("a directory", &["configuration:", "/etc", "directory"], || with("dirconfig", "/etc"));
        fails("too long", &["configuration:", "/husk-testbed/cases", "more than 1048576 bytes"], || {
            with("binconfig", "/husk-testbed/cases")
        });
        fails("a device", &["configuration:", "/dev/zero", "no regular file"], || with("devconfig", "/dev/zero"));
        let fifo = root.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        let path = fifo.to_str().unwrap();
        fails("a fifo", &["configuration:", path, "no regular file"], || with("fifoconfig", path));
        for (id, what, text, words) in [
            ("key", "a key", "[vm]\nmemroy_mib = 64\n", &["line 2", "memroy_mib", "memory_mib"][..]),
            ("type", "a type", "[vm]\nvcpus = \"two\"\n", &["line 2", "vcpus", "string"]),
            ("value", "a value", "[limits]\nready_s = 0\n", &["limits.ready_s = 0", "1 to 3600"]),
            ("toml", "no TOML", "[vm\n", &["line 1"]),
        ] {
            fails(what, &[&["configuration:"], words].concat(), || configured(id, root.path(), text).0);
        }
        let _replaced = Aside::replace(Path::new("/etc/husk/config.toml"), b"[log]\nlevel = \"loud\"\n");
        fails("/etc/husk/config.toml", &["configuration:", "/etc/husk/config.toml", "log.level", "loud"], || {
            run("etc", &root)
        });
    });
}

#[test]
fn a_guest_that_misbehaves() {
    leaves_nothing(|| {
        let root = busybox();
        let initrd = fs::read(TEST_GUEST).unwrap();
        let _replaced = Aside::replace(installed("initrd"), &initrd);
        for (how, words) in [
            ("silent", &["boot:", "did not become ready in 10 s (limits.ready_s)", "its machine is running"][..]),
            ("halt", &["boot:", "halted for good"]),
            ("other-major", &["boot:", "9.9.9 speaks protocol", "same build"]),
            ("dies-in-create", &["machine:", "the guest reset itself", "Attempted to kill init"]),
            ("hangs-in-create", &["container:", "did not make the container in 5 s (limits.call_s)"]),
            ("nonsense", &["boot:", "line 39 of 40", "test_guest=Ok(\\\"nonsense\\\")", "Kernel panic"]),
        ] {
            let text = format!("[vm]\nkernel_cmdline = \"test_guest={how}\"\n[limits]\ncall_s = 5\n");
            fails(how, words, || configured(how, root.path(), &text).0);
        }
    });
}

#[test]
fn no_kvm_and_kvm_without_permission() {
    leaves_nothing(|| {
        let root = busybox();
        let kvm = Path::new("/dev/kvm");
        {
            let _none = Aside::move_away(kvm);
            fails(
                "no /dev/kvm",
                &["machine:", "cannot open /dev/kvm", "load kvm_intel or kvm_amd", "husk check"],
                || run("nokvm", &root),
            );
        }
        // Root may do everything but open a device where devices are not allowed.
        let directory = tempfile::tempdir().unwrap();
        mount("none", directory.path(), "tmpfs", MountFlags::NODEV, None).unwrap();
        let _tmpfs = Mounted(directory.path().to_owned());
        let node = directory.path().join("kvm");
        let device = fs::metadata(kvm).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &node, rustix::fs::FileType::CharacterDevice, 0o600.into(), device.rdev())
            .unwrap();
        mount_bind(&node, kvm).unwrap();
        let _bound = Mounted(kvm.to_owned());
        fails("/dev/kvm without permission", &["machine:", "cannot open /dev/kvm", "Permission denied"], || {
            run("forbidden", &root)
        });
    });
}

#[test]
fn no_room_in_run() {
    leaves_nothing(|| {
        let root = busybox();
        let directory = Path::new("/run/husk");
        let was_there = directory.exists();
        fs::create_dir_all(directory).unwrap();
        {
            mount("none", directory, "tmpfs", MountFlags::empty(), Some(c"size=4k")).unwrap();
            let _full = Mounted(directory.to_owned());
            fs::write(directory.join("full"), [0; 4096]).unwrap();
            fails("no room", &["host:", "/run/husk/default/full", "No space left", "make room in /run"], || {
                run("full", &root)
            });
        }
        {
            mount("none", directory, "tmpfs", MountFlags::empty(), Some(c"nr_inodes=2")).unwrap();
            let _full = Mounted(directory.to_owned());
            fails("no inode", &["host:", "/run/husk/default/inodes", "No space left"], || run("inodes", &root));
        }
        if !was_there {
            fs::remove_dir(directory).unwrap();
        }
    });
}

/// A shim under another name, with this limit of descriptors.
fn with_descriptors(limit: u32) -> (Limited, String) {
    let name = format!("limited{limit}");
    let path = PathBuf::from(format!("/usr/local/bin/containerd-shim-{name}-v2"));
    let script = format!("#!/bin/sh\nulimit -n {limit}\nexec containerd-shim-husk-v2 \"$@\"\n");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (Limited(path), format!("io.containerd.{name}.v2"))
}

struct Limited(PathBuf);

impl Drop for Limited {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

#[test]
fn few_descriptors() {
    leaves_nothing(|| {
        let root = busybox();
        let path = root.path().to_str().unwrap();
        let run = |id: &str, runtime: &str| {
            ctr(&["run", "--rm", "--runtime", runtime, "--rootfs", path, id, "/bin/echo", "hello"])
        };
        // A pod of one container takes no more than this.
        let (_shim, runtime) = with_descriptors(64);
        let output = run("enough", &runtime);
        assert_eq!((output.status, output.text().as_str()), (0, "hello\n"), "{}", output.errors());
        // Wherever they run out: in the shim, in the VMM, or for the guest's streams.
        for limit in [14, 16, 20, 24, 28, 32] {
            let (_shim, runtime) = with_descriptors(limit);
            let output = run("few", &runtime);
            println!("    {limit} descriptors: {}", output.errors().trim_end());
            refused(&output, &["Too many open files"]);
            let remedies = ["LimitNOFILE", "husk check", "the VMM's last warning"];
            assert!(remedies.iter().any(|remedy| output.errors().contains(remedy)), "{}", output.errors());
        }
    });
}

#[test]
fn names_that_cannot_be() {
    let root = busybox();
    let path = root.path().to_str().unwrap();
    let run_in = |runtime: Runtime, namespace: &str, id: &str| {
        let words = ["-n", namespace, "run", "--rm", "--runtime", runtime.name(), "--rootfs", path, id, "/bin/true"];
        ctr(&words)
    };
    // As long as they may be, and with all that may be in them.
    let longest = [("n".repeat(76), "i".repeat(76)), ("a.b-c_D.1".to_owned(), "x.y-z_W.2".to_owned())];
    // What containerd and the cgroup tree keep of a namespace is there before, with runc.
    for (namespace, id) in &longest {
        let output = run_in(Runtime::Runc, namespace, id);
        assert_eq!(output.status, 0, "{namespace} {id}: {}", output.errors());
    }
    leaves_nothing(|| {
        fails("an id of 200 characters", &["76 characters"], || run(&"i".repeat(200), &root));
        fails("an id that is a path", &["../x"], || run("../x", &root));
        for namespace in ["a b", "a/b", "../x", "ä", "-a"] {
            fails(&format!("namespace {namespace}"), &["namespace"], || run_in(Runtime::Husk, namespace, "c"));
        }
        for (namespace, id) in &longest {
            let output = run_in(Runtime::Husk, namespace, id);
            assert_eq!(output.status, 0, "{namespace} {id}: {}", output.errors());
        }
    });
    for (namespace, _) in &longest {
        must(&["namespace", "rm", namespace]);
    }
}

/// Runs the shim's command as containerd does.
fn shim(bundle: &Path, id: &str, verb: &str) -> Command {
    let mut command = Command::new("containerd-shim-husk-v2");
    command.args(["-namespace", "default", "-address", "/run/containerd/containerd.sock", "-id", id, verb]);
    command.current_dir(bundle).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env("TTRPC_ADDRESS", "/run/containerd/containerd.sock.ttrpc");
    command
}

#[test]
fn a_bundle_with_a_long_path() {
    leaves_nothing(|| {
        let top = tempfile::tempdir().unwrap();
        for length in [100, 108, 250, 3000] {
            let mut bundle = top.path().to_owned();
            while bundle.as_os_str().len() < length {
                bundle.push("d".repeat(100.min(length - bundle.as_os_str().len())));
            }
            fs::create_dir_all(&bundle).unwrap();
            let output = shim(&bundle, "deep", "start").output().unwrap();
            let address = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{length}: {}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(fs::read_to_string(bundle.join("address")).unwrap(), address);
            assert!(Path::new(address.strip_prefix("unix://").unwrap()).exists(), "{address}");
            let output = shim(&bundle, "deep", "delete").output().unwrap();
            assert!(output.status.success(), "{length}: {}", String::from_utf8_lossy(&output.stderr));
        }
    });
}

/// `start` with these options of runc's shim, as containerd hands them over.
fn start_with(options: &runc::Options, bundle: &Path) -> std::process::Output {
    let any = Any {
        type_url: "containerd.runc.v1.Options".to_owned(),
        value: options.write_to_bytes().unwrap(),
        ..Any::default()
    };
    let mut start = shim(bundle, "grouped", "start").stdin(Stdio::piped()).spawn().unwrap();
    start.stdin.take().unwrap().write_all(&any.write_to_bytes().unwrap()).unwrap();
    start.wait_with_output().unwrap()
}

#[test]
fn a_cgroup_for_the_shim() {
    let group = Path::new("/sys/fs/cgroup/husk-shims");
    let options = runc::Options { shim_cgroup: "/husk-shims".to_owned(), ..runc::Options::default() };
    leaves_nothing(|| {
        let bundle = tempfile::tempdir().unwrap();
        let output = start_with(&options, bundle.path());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && output.stdout.is_empty(), "{errors}");
        assert!(errors.contains("/sys/fs/cgroup/husk-shims") && errors.contains("make it first"), "{errors}");
    });
    fs::create_dir(group).unwrap();
    leaves_nothing(|| {
        let bundle = tempfile::tempdir().unwrap();
        let output = start_with(&options, bundle.path());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        let inside: BTreeSet<i32> = inside.lines().map(|line| line.parse().unwrap()).collect();
        assert_eq!(inside, processes_of("containerd-shim-husk-v2").into_iter().collect());
        assert!(shim(bundle.path(), "grouped", "delete").output().unwrap().status.success());
    });
    // Whose it is removes it.
    fs::remove_dir(group).unwrap();
}

#[test]
fn a_start_that_is_killed_in_the_middle() {
    leaves_nothing(|| {
        let bundle = tempfile::tempdir().unwrap();
        rootfs::busybox(bundle.path());
        let (mut killed, mut in_the_middle, mut answered) = (0, 0, 0);
        let begin = Instant::now();
        assert!(shim(bundle.path(), "killed", "start").output().unwrap().status.success());
        // However fast this host is.
        let step = (begin.elapsed() / 200).max(Duration::from_micros(100));
        assert!(shim(bundle.path(), "killed", "delete").output().unwrap().status.success());
        for pid in processes_of("containerd-shim-husk-v2") {
            wait_for_end(pid.cast_unsigned());
        }
        let _ = fs::remove_file(bundle.path().join("address"));
        // From before its first instruction to after its answer. The times are the case: there is nothing to wait for.
        for delay in (0..).map(|steps| step * steps) {
            if answered == 3 {
                break;
            }
            assert!(delay < LIMIT, "start does not end");
            let mut start = shim(bundle.path(), "killed", "start").spawn().unwrap();
            std::thread::sleep(delay);
            // Its socket is the first that it makes on the host, and nobody has heard of it.
            let has_begun = bundle.path().join("address").exists();
            start.kill().unwrap();
            let output = start.wait_with_output().unwrap();
            let is_killed = !output.status.success();
            killed += usize::from(is_killed);
            in_the_middle += usize::from(is_killed && has_begun);
            answered += usize::from(!is_killed);
            if output.status.success() {
                // containerd knows of it and ends it.
                assert!(shim(bundle.path(), "killed", "delete").output().unwrap().status.success());
            }
            // Nobody knows of any other: it ends by itself.
            for pid in processes_of("containerd-shim-husk-v2") {
                wait_for_end(pid.cast_unsigned());
            }
            let _ = fs::remove_file(bundle.path().join("address"));
        }
        println!(
            "    {killed} were killed before they had answered, {in_the_middle} of them in the middle, {answered} after"
        );
        assert!(in_the_middle > 0, "none was killed in the middle");
    });
}
