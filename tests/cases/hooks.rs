//! Hooks of the document that run on the host, beside runc's.

use std::fs;
use std::path::Path;

use husk_tests::ctr::{Output, Runtime, ctr};
use husk_tests::host::leaves_nothing;
use serde_json::{Value, json};

use crate::document::document;
use crate::{busybox, refused};

/// What a hook has told of itself.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    kind: String,
    mounts: String,
    network: String,
    directory: String,
    state: Value,
}

/// A hook that appends a line to `record`, and then does what `script` says, which finds the container's root in `$ROOT`.
fn hook(record: &Path, root: &Path, kind: &str, script: &str) -> Value {
    let script = format!(
        "echo {kind} $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/net) $(pwd) $(cat) >>$RECORD; {script}"
    );
    let (record, root) = (format!("RECORD={}", record.display()), format!("ROOT={}", root.display()));
    let environment = ["PATH=/usr/bin:/bin", &record, &root];
    json!({ "path": "/bin/sh", "args": ["hook", "-c", script], "env": environment })
}

/// Runs a container with these hooks, each its kind and what it does. Its program says hello, or what is in `/made`.
fn run(runtime: Runtime, id: &str, hooks: &[(&str, &str)], timeout: Option<u32>) -> (Output, Vec<Told>) {
    let root = busybox();
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    fs::write(&record, "").unwrap();
    let config = document(root.path(), "[ -e /made ] || exec echo hello; cat /made", |document| {
        document["annotations"] = json!({ "husk.test/key": "value" });
        document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
        for (kind, script) in hooks {
            let mut hook = hook(&record, root.path(), kind, script);
            if let Some(timeout) = timeout {
                hook["timeout"] = timeout.into();
            }
            match document["hooks"][kind].as_array_mut() {
                Some(list) => list.push(hook),
                None => document["hooks"][kind] = json!([hook]),
            }
        }
    });
    let config = config.path().to_str().unwrap();
    let output = ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", config, id]);
    let told = fs::read_to_string(&record).unwrap();
    let told = told.lines().map(|line| {
        let mut words = line.splitn(5, ' ').map(str::to_owned);
        let mut word = || words.next().unwrap();
        Told {
            kind: word(),
            mounts: word(),
            network: word(),
            directory: word(),
            state: serde_json::from_str(&word()).unwrap(),
        }
    });
    (output, told.collect())
}

/// What the error says of a hook's kind: runc names it since 1.2.
fn named(runtime: Runtime, kind: &str) -> &str {
    if runtime == Runtime::Husk { kind } else { "" }
}

fn kinds(told: &[Told]) -> Vec<&str> {
    told.iter().map(|told| told.kind.as_str()).collect()
}

#[test]
fn hooks_run_in_order_and_are_told_the_same() {
    leaves_nothing(|| {
        let list = ["poststop", "poststart", "createRuntime", "prestart", "createRuntime"].map(|kind| (kind, ""));
        let with = |runtime, id: &str| {
            let (output, mut told) = run(runtime, id, &list, None);
            assert_eq!((output.status, output.text().as_str()), (0, "hello\n"), "{}", output.errors());
            for told in &mut told {
                let kind = told.kind.as_str();
                // Where each runtime has its own: the container's name, its process, and the version of the specification.
                assert_eq!(told.state["id"], *id);
                assert_eq!(told.state["bundle"], told.directory.as_str());
                assert!(told.directory.ends_with(&format!("/{id}")), "{told:?}");
                assert!(told.state["ociVersion"].as_str().is_some_and(|version| version.starts_with("1.")), "{told:?}");
                let pid = told.state["pid"].as_u64().unwrap_or(0);
                assert_eq!(pid > 1, kind != "poststop", "{told:?}");
                let state = told.state.as_object_mut().unwrap();
                for key in ["id", "bundle", "ociVersion", "pid"] {
                    state.remove(key);
                }
                told.directory.clear();
                // runc before 1.4 runs this kind at Create already.
                if kind == "poststart" && runtime == Runtime::Runc && state["status"] == "created" {
                    state["status"] = "running".into();
                }
            }
            told
        };
        let (runc, husk) = (with(Runtime::Runc, "hooks-runc"), with(Runtime::Husk, "hooks-husk"));
        assert_eq!(husk, runc);
        assert_eq!(kinds(&husk), ["prestart", "createRuntime", "createRuntime", "poststart", "poststop"]);
        // In the host's namespaces, whatever the container has.
        let host = ["mnt", "net"].map(|kind| fs::read_link(format!("/proc/1/ns/{kind}")).unwrap());
        for told in &husk {
            assert_eq!([&told.mounts, &told.network].map(Path::new), host.each_ref().map(|link| &**link), "{told:?}");
        }
        let status: Vec<&Value> = husk.iter().map(|told| &told.state["status"]).collect();
        assert_eq!(status, ["creating", "creating", "creating", "running", "stopped"]);
        assert!(husk.iter().all(|told| told.state["annotations"]["husk.test/key"] == "value"), "{husk:?}");
    });
}

#[test]
fn what_a_hook_changes_in_the_root_is_seen() {
    leaves_nothing(|| {
        for (runtime, id) in [(Runtime::Runc, "made-runc"), (Runtime::Husk, "made-husk")] {
            let hooks = [("prestart", "echo pre >$ROOT/made"), ("createRuntime", "echo create >>$ROOT/made")];
            let (output, _) = run(runtime, id, &hooks, None);
            assert_eq!((output.status, output.text().as_str()), (0, "pre\ncreate\n"), "{}", output.errors());
        }
    });
}

#[test]
fn a_hook_that_fails_at_create_is_told_in_its_words() {
    leaves_nothing(|| {
        for (runtime, id) in [(Runtime::Runc, "create-runc"), (Runtime::Husk, "create-husk")] {
            for kind in ["prestart", "createRuntime"] {
                let hooks =
                    [(kind, "echo no room for it >&2; exit 3"), (kind, ""), ("poststart", ""), ("poststop", "")];
                let (output, told) = run(runtime, id, &hooks, None);
                refused(&output, &[named(runtime, kind), "hook #0", "exit status 3", "no room for it"]);
                assert_eq!(output.text(), "", "its program has not run");
                assert_eq!(kinds(&told), [kind, "poststop"], "{runtime:?}");
            }
        }
    });
}

#[test]
fn a_hook_that_fails_at_start_ends_the_container() {
    leaves_nothing(|| {
        for (runtime, id) in [(Runtime::Runc, "start-runc"), (Runtime::Husk, "start-husk")] {
            let hooks = [("poststart", "echo no luck; exit 4"), ("poststart", ""), ("poststop", "")];
            let (output, told) = run(runtime, id, &hooks, None);
            refused(&output, &[named(runtime, "poststart"), "hook #0", "exit status 4", "no luck"]);
            assert_eq!(kinds(&told), ["poststart", "poststop"], "{runtime:?}");
        }
    });
}

#[test]
fn a_hook_that_fails_at_the_end_changes_nothing() {
    leaves_nothing(|| {
        let hooks = [("poststop", "exit 5"), ("poststop", "")];
        let (output, told) = run(Runtime::Husk, "stop", &hooks, None);
        assert_eq!((output.status, output.text().as_str()), (0, "hello\n"), "{}", output.errors());
        // runc gives up at the first, against the specification.
        assert_eq!(kinds(&told), ["poststop", "poststop"]);
    });
}

#[test]
fn a_hook_that_never_ends_is_killed_with_its_children() {
    leaves_nothing(|| {
        let hooks = [("createRuntime", "echo waiting; sleep 1000 & timeout 1000 sleep 1000")];
        let (output, _) = run(Runtime::Husk, "never", &hooks, Some(2));
        refused(&output, &["createRuntime hook #0", "did not end in 2 s", "waiting"]);
    });
}

#[test]
fn a_hook_whose_child_holds_its_output_has_ended() {
    leaves_nothing(|| {
        let directory = tempfile::tempdir().unwrap();
        let pid = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}", pid.display());
        let (output, _) = run(Runtime::Husk, "child", &[("createRuntime", &script)], None);
        assert_eq!((output.status, output.text().as_str()), (0, "hello\n"), "{}", output.errors());
        // It is the host's now.
        let left = fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let left = rustix::process::Pid::from_raw(left).unwrap();
        rustix::process::kill_process(left, rustix::process::Signal::KILL).unwrap();
    });
}

#[test]
fn a_hook_that_cannot_be_is_refused_before_anything_runs() {
    leaves_nothing(|| {
        let root = busybox();
        for (hook, words) in [
            (json!({ "path": "bin/hook" }), ["poststop hook #0", "absolute path"]),
            (json!({ "path": "/bin/hook", "timeout": 0 }), ["poststop hook #0", "timeout 0"]),
        ] {
            let config =
                document(root.path(), "echo hello", |document| document["hooks"] = json!({ "poststop": [hook] }));
            let config = config.path().to_str().unwrap();
            let output = ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "wrong"]);
            refused(&output, &words);
            assert_eq!(output.text(), "");
        }
    });
}
