//! `husk-agent oci` beside runc: the same bundle, the same commands, on the host's own kernel; and containerd's shim for runc with it in
//! the place of runc. `tests/e2e/run` puts the agent where [`AGENT`] says.

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use husk_tests::ctr::{Output, ctr, must};
use husk_tests::host::leaves_nothing;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};
use tempfile::TempDir;

mod told;

/// The agent, which is otherwise in the initrd only.
const AGENT: &str = "/husk-testbed/husk-agent";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runtime {
    Runc,
    Husk,
}

const BOTH: [Runtime; 2] = [Runtime::Runc, Runtime::Husk];

/// A bundle and where its runtime keeps its state.
struct Bundle {
    runtime: Runtime,
    directory: TempDir,
}

impl Bundle {
    /// With busybox, whose shell runs `script` in a document that has been changed.
    fn new(runtime: Runtime, script: &str, change: impl FnOnce(&mut Value)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("rootfs")).unwrap();
        husk_tests::rootfs::busybox(&directory.path().join("rootfs"));
        let bundle = Self { runtime, directory };
        let mut document: Value = serde_json::from_str(&must(&["oci", "spec"])).unwrap();
        document["root"] = json!({ "path": "rootfs" });
        document["process"]["args"] = json!(["/bin/sh", "-c", script]);
        document["process"]["env"] = json!(["PATH=/bin"]);
        document["process"]["terminal"] = false.into();
        document["linux"]["cgroupsPath"] = format!("/default/{}", bundle.id()).into();
        change(&mut document);
        fs::write(bundle.file("config.json"), document.to_string()).unwrap();
        bundle
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn id(&self) -> &'static str {
        match self.runtime {
            Runtime::Runc => "oci-runc",
            Runtime::Husk => "oci-husk",
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["-k", "5", "60"]);
        match self.runtime {
            Runtime::Runc => command.arg("runc"),
            Runtime::Husk => command.args([AGENT, "oci"]),
        };
        command.arg("--root").arg(self.file("state")).args(words);
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end. To files: a container that goes on has them, too.
    fn oci(&self, words: &[&str]) -> Output {
        let (out, err) = (self.file("stdout"), self.file("stderr"));
        let mut command = self.command(words);
        command.stdout(fs::File::create(&out).unwrap()).stderr(fs::File::create(&err).unwrap());
        let status = command.status().unwrap().code().unwrap_or(124);
        Output { status, stdout: fs::read(out).unwrap(), stderr: fs::read(err).unwrap() }
    }

    fn must(&self, words: &[&str]) -> String {
        let output = self.oci(words);
        assert_eq!(output.status, 0, "{:?} {words:?}: {}{}", self.runtime, output.text(), output.errors());
        output.text()
    }

    fn fails(&self, words: &[&str]) -> (i32, String) {
        let output = self.oci(words);
        assert_ne!(output.status, 0, "{:?} {words:?}: {}", self.runtime, output.text());
        assert_ne!(output.status, 124, "{:?} {words:?} hangs", self.runtime);
        (output.status, output.errors())
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.must(&["state", self.id()])).unwrap()
    }

    fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    fn cgroup(&self) -> PathBuf {
        Path::new("/sys/fs/cgroup/default").join(self.id())
    }

    /// Waits until the container's init has ended.
    fn ends(&self) {
        use rustix::event::{PollFd, PollFlags, poll};
        let pid = i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap();
        let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
        let Ok(process) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], None).unwrap();
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Of a case that has failed.
        let _ = self.command(&["delete", "--force", self.id()]).stderr(Stdio::null()).status();
    }
}

/// The same of both runtimes.
fn same<T: PartialEq + std::fmt::Debug>(of: impl Fn(Runtime) -> T) -> T {
    let [runc, husk] = BOTH.map(of);
    assert_eq!(husk, runc);
    husk
}

#[test]
fn a_life_is_runcs() {
    leaves_nothing(|| {
        same(|runtime| {
            let bundle = Bundle::new(runtime, "echo here; exec sleep 1000", |document| {
                document["annotations"] = json!({ "husk.test/key": "value" });
            });
            let (id, pid_file) = (bundle.id(), bundle.file("pid"));
            let mut seen = Vec::new();
            bundle.must(&["create", "--pid-file", pid_file.to_str().unwrap(), id]);
            let mut state = bundle.state();
            assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).unwrap());
            assert_eq!((&state["id"], &state["status"]), (&json!(id), &json!("created")));
            assert_eq!(state["bundle"], bundle.directory.path().to_str().unwrap());
            assert_eq!(state["annotations"]["husk.test/key"], "value");
            let keys: Vec<String> = state.as_object_mut().unwrap().keys().cloned().collect();
            seen.push(keys.join(" "));
            let (status, errors) = bundle.fails(&["create", id]);
            assert!(errors.contains("container with given ID already exists"), "{errors}");
            seen.push(status.to_string());
            bundle.must(&["start", id]);
            seen.push(bundle.status());
            let (status, errors) = bundle.fails(&["start", id]);
            assert!(errors.contains("cannot start an already running container"), "{errors}");
            seen.push(status.to_string());
            let (status, errors) = bundle.fails(&["delete", id]);
            assert!(errors.contains("that is not stopped: running"), "{errors}");
            seen.push(status.to_string());
            bundle.must(&["kill", id, "KILL"]);
            bundle.ends();
            let state = bundle.state();
            seen.push(format!("{} {}", state["status"], state["pid"]));
            let (status, errors) = bundle.fails(&["kill", id]);
            assert!(errors.contains("container not running"), "{errors}");
            seen.push(status.to_string());
            assert!(bundle.cgroup().is_dir());
            bundle.must(&["delete", id]);
            assert!(!bundle.cgroup().exists() && !bundle.file("state").join(id).exists());
            let (status, errors) = bundle.fails(&["state", id]);
            assert!(errors.contains("container does not exist"), "{errors}");
            seen.push(status.to_string());
            bundle.must(&["delete", "--force", id]);
            seen
        });
    });
}

#[test]
fn a_run_has_its_output_and_its_status() {
    leaves_nothing(|| {
        let script = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; hostname; pwd; ls /dev; ls /proc/self/fd | wc -l; \
            cut -d' ' -f2,3 /proc/mounts; cat /proc/self/cgroup; for kind in ipc uts pid mnt net; do readlink /proc/self/ns/$kind | cut -c1-4; done; \
            echo oops >&2; exit 7";
        let output = same(|runtime| {
            let bundle = Bundle::new(runtime, script, |document| {
                document["hostname"] = "named".into();
                document["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "cgroup" }));
            });
            bundle.oci(&["run", bundle.id()])
        });
        assert_eq!((output.status, output.errors().as_str()), (7, "oops\n"), "{}", output.text());
        assert!(output.text().contains("\nnamed\n"), "{}", output.text());
    });
}

#[test]
fn an_exec_joins_and_has_its_status() {
    leaves_nothing(|| {
        same(|runtime| {
            let bundle = Bundle::new(runtime, "exec sleep 1000", |_| {});
            let id = bundle.id();
            bundle.must(&["run", "--detach", id]);
            let script = "id -u; id -g; pwd; echo $A; cat /proc/1/cmdline | tr '\\0' ' '; exit 9";
            let flags = ["exec", "--user", "1000:1000", "--cwd", "/tmp", "--env", "A=b", id, "sh", "-c", script];
            let output = bundle.oci(&flags);
            assert_eq!(
                (output.status, output.text().as_str()),
                (9, "1000\n1000\n/tmp\nb\nsleep 1000 "),
                "{}",
                output.errors()
            );
            let process =
                json!({ "args": ["/bin/sh", "-c", "echo from a file"], "cwd": "/", "user": { "uid": 0, "gid": 0 } });
            fs::write(bundle.file("process.json"), process.to_string()).unwrap();
            assert_eq!(bundle.must(&["exec", "--process", "process.json", id]), "from a file\n");
            let (status, errors) = bundle.fails(&["exec", id, "nosuch"]);
            assert!(errors.contains("executable file not found in $PATH"), "{errors}");
            let pids: Vec<u64> = serde_json::from_str(&bundle.must(&["ps", "--format", "json", id])).unwrap();
            assert_eq!(json!(pids), json!([bundle.state()["pid"]]));
            bundle.must(&["pause", id]);
            let paused = bundle.status();
            let (paused_exec, errors) = bundle.fails(&["exec", id, "true"]);
            assert!(errors.contains("cannot exec in a paused container"), "{errors}");
            bundle.must(&["resume", id]);
            let (resumed, errors) = bundle.fails(&["resume", id]);
            assert!(errors.contains("container not paused"), "{errors}");
            bundle.must(&["delete", "--force", id]);
            (status, paused, paused_exec, resumed)
        });
    });
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    leaves_nothing(|| {
        let shown = same(|runtime| {
            let bundle = Bundle::new(runtime, "tty; stty size; read line; echo got $line", |document| {
                document["process"]["terminal"] = true.into();
                document["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
            });
            let socket = bundle.file("console");
            let listener = UnixListener::bind(&socket).unwrap();
            let id = bundle.id();
            bundle.must(&["create", "--console-socket", socket.to_str().unwrap(), id]);
            let (connection, _) = listener.accept().unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut name = [0; 64];
            let received =
                recvmsg(connection.as_fd(), &mut [IoSliceMut::new(&mut name)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
                    .unwrap();
            assert!(received.bytes > 0);
            let terminal = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            });
            let mut terminal = fs::File::from(terminal.unwrap());
            bundle.must(&["start", id]);
            let mut shown = Vec::new();
            // The echo of what is typed would get into the middle of a line.
            while !shown.ends_with(b"33 77\r\n") {
                let mut byte = [0];
                terminal.read_exact(&mut byte).unwrap();
                shown.push(byte[0]);
            }
            std::io::Write::write_all(&mut terminal, b"word\n").unwrap();
            // EIO: the last process has gone.
            let _ = terminal.read_to_end(&mut shown);
            bundle.ends();
            bundle.must(&["delete", id]);
            let shown = String::from_utf8(shown).unwrap();
            shown.lines().map(str::to_owned).collect::<Vec<_>>()
        });
        assert_eq!(shown[1..], ["33 77", "word", "got word"], "{shown:?}");
    });
}

#[test]
fn descriptors_are_kept_as_many_as_asked_for() {
    leaves_nothing(|| {
        let output = same(|runtime| {
            let bundle = Bundle::new(runtime, "cat <&3; cat <&4 2>/dev/null || echo no fourth", |_| {});
            fs::write(bundle.file("third"), "third\n").unwrap();
            let file = fs::File::open(bundle.file("third")).unwrap();
            let mut command = bundle.command(&["run", "--preserve-fds", "1", bundle.id()]);
            let number = file.as_raw_fd();
            // SAFETY: system calls alone between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    // Far from both: a copy onto itself would stay close-on-exec.
                    let far = libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 100);
                    libc::dup2(far, 3);
                    libc::dup2(far, 4);
                    Ok(())
                })
            };
            let output = command.stderr(Stdio::piped()).output().unwrap();
            assert!(output.status.success(), "{runtime:?}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        });
        assert_eq!(output, "third\nno fourth\n");
    });
}

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    leaves_nothing(|| {
        for runtime in BOTH {
            let bundle = Bundle::new(runtime, "true", |_| {});
            for id in ["../up", "a b", ".."] {
                let (status, errors) = bundle.fails(&["create", id]);
                assert!(status == 1 && errors.contains("invalid container ID format"), "{runtime:?} {id}: {errors}");
            }
            let (_, errors) = bundle.fails(&["create", "--bundle", "/no/such", bundle.id()]);
            assert!(errors.contains("no such file") || errors.contains("No such file"), "{runtime:?}: {errors}");
            for text in ["{", "[]", "{\"ociVersion\":7}", ""] {
                fs::write(bundle.file("config.json"), text).unwrap();
                assert_eq!(bundle.fails(&["create", bundle.id()]).0, 1, "{runtime:?} {text:?}");
            }
            fs::remove_file(bundle.file("config.json")).unwrap();
            let (_, errors) = bundle.fails(&["create", bundle.id()]);
            assert!(errors.contains("JSON specification file config.json not found"), "{runtime:?}: {errors}");
            assert!(bundle.fails(&["state", "nobody"]).1.contains("container does not exist"));
            assert!(!bundle.cgroup().exists() && !bundle.file("state").join(bundle.id()).exists(), "{runtime:?}");
        }
        // In the middle of a creation: the program is looked for in the new root, a sysctl of the host's is not a container's to set.
        for change in [json!({ "args": ["/no/such"] }), json!({ "cwd": "/bin/busybox/x" })] {
            same(|runtime| {
                let bundle = Bundle::new(runtime, "true", |document| {
                    for (key, value) in change.as_object().unwrap() {
                        document["process"][key] = value.clone();
                    }
                });
                let (status, errors) = bundle.fails(&["create", bundle.id()]);
                assert!(errors.contains("unable to start container process"), "{errors}");
                assert!(!bundle.cgroup().exists() && !bundle.file("state").join(bundle.id()).exists(), "{runtime:?}");
                status
            });
        }
        same(|runtime| {
            let bundle =
                Bundle::new(runtime, "true", |document| document["linux"]["sysctl"] = json!({ "kernel.panic": "1" }));
            let (status, errors) = bundle.fails(&["create", bundle.id()]);
            assert!(errors.contains("kernel.panic") && errors.contains("separate kernel namespace"), "{errors}");
            status
        });
    });
}

#[test]
fn all_six_kinds_of_hooks_run() {
    leaves_nothing(|| {
        let told = same(|runtime| {
            let bundle = Bundle::new(runtime, "exec sleep 1000", |_| {});
            let record = bundle.file("record");
            let mut document: Value = serde_json::from_slice(&fs::read(bundle.file("config.json")).unwrap()).unwrap();
            let hook = |kind: &str| {
                let script =
                    format!("echo {kind} $(grep -o '\"status\":\"[a-z]*\"' | cut -d: -f2) >>{}", record.display());
                json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }])
            };
            document["mounts"].as_array_mut().unwrap().push(json!({
                "destination": bundle.directory.path(), "type": "bind", "source": bundle.directory.path(), "options": ["bind", "rw"]
            }));
            for kind in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
                document["hooks"][kind] = hook(kind);
            }
            fs::write(bundle.file("config.json"), document.to_string()).unwrap();
            let id = bundle.id();
            bundle.must(&["create", id]);
            bundle.must(&["start", id]);
            bundle.must(&["delete", "--force", id]);
            let text = fs::read_to_string(record).unwrap();
            // runc before 1.4 runs this kind at Create already.
            let mut lines: Vec<String> =
                text.lines().filter(|line| !line.starts_with("poststart")).map(str::to_owned).collect();
            assert!(text.contains("poststart \""), "{text}");
            lines.dedup();
            lines
        });
        let kinds: Vec<&str> = told.iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(kinds, ["prestart", "createRuntime", "createContainer", "startContainer", "poststop"], "{told:?}");
    });
}

#[test]
fn namespaces_are_joined_and_ids_are_mapped() {
    leaves_nothing(|| {
        // Of a process that waits: its network and its UTS namespace.
        let mut other = Command::new("unshare").args(["-n", "-u", "sleep", "1000"]).spawn().unwrap();
        let path = |kind: &str| format!("/proc/{}/ns/{kind}", other.id());
        // It is in them when it is the program.
        while fs::read_to_string(format!("/proc/{}/comm", other.id())).unwrap().trim() != "sleep" {
            std::thread::yield_now();
        }
        let wanted = ["net", "uts"].map(|kind| fs::read_link(path(kind)).unwrap().display().to_string()).join("\n");
        let output = same(|runtime| {
            let bundle = Bundle::new(runtime, "readlink /proc/self/ns/net; readlink /proc/self/ns/uts", |document| {
                document["hostname"] = Value::Null;
                document["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" },
                    { "type": "network", "path": path("net") }, { "type": "uts", "path": path("uts") }]);
            });
            bundle.must(&["run", bundle.id()])
        });
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(output.trim(), wanted);
        let mapped = same(|runtime| {
            let bundle = Bundle::new(
                runtime,
                "id -u; cat /proc/self/uid_map | tr -s ' '; stat -c %t:%T /dev/null; touch /made",
                |document| {
                    let linux = &mut document["linux"];
                    linux["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
                    linux["uidMappings"] = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
                    linux["gidMappings"] = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
                },
            );
            fs::set_permissions(bundle.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
            must_run("chown", &["-R", "100000:100000", bundle.file("rootfs").to_str().unwrap()]);
            bundle.must(&["run", bundle.id()])
        });
        assert!(mapped.starts_with("0\n") && mapped.ends_with("1:3\n"), "{mapped}");
    });
}

fn must_run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

#[test]
fn containerd_takes_it_for_runc() {
    leaves_nothing(|| {
        let root = crate::busybox();
        let directory = tempfile::tempdir().unwrap();
        let wrapper = directory.path().join("husk-oci");
        fs::write(&wrapper, format!("#!/bin/sh\nexec {AGENT} oci \"$@\"\n")).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let (root, wrapper) = (root.path().to_str().unwrap(), wrapper.to_str().unwrap());
        let run = ["run", "--rm", "--runc-binary", wrapper, "--env", "PATH=/bin", "--rootfs", root];
        let output = ctr(&[&run[..], &["oci-ctr", "sh", "-c", "echo hello; id -u; exit 5"]].concat());
        assert_eq!((output.status, output.text().as_str()), (5, "hello\n0\n"), "{}", output.errors());
        let detached = ["run", "-d", "--null-io", "--runc-binary", wrapper, "--env", "PATH=/bin", "--rootfs", root];
        must(&[&detached[..], &["oci-ctr", "sleep", "1000"]].concat());
        let output = ctr(&["task", "exec", "--exec-id", "one", "oci-ctr", "sh", "-c", "echo inside; exit 3"]);
        assert_eq!((output.status, output.text().as_str()), (3, "inside\n"), "{}", output.errors());
        must(&["task", "pause", "oci-ctr"]);
        must(&["task", "resume", "oci-ctr"]);
        assert!(must(&["task", "ps", "oci-ctr"]).lines().count() >= 2);
        let output = ctr(&["task", "exec", "--exec-id", "two", "oci-ctr", "nosuch"]);
        assert!(
            output.status != 0 && output.errors().contains("executable file not found in $PATH"),
            "{}",
            output.errors()
        );
        must(&["task", "delete", "-f", "oci-ctr"]);
        must(&["container", "delete", "oci-ctr"]);
    });
}
