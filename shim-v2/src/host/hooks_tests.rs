use std::fs;
use std::io::Read;
use std::thread::JoinHandle;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;

/// A bundle, for hooks that write into it.
struct Bundle(TempDir);

impl Bundle {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn hooks(&self, hooks: Value) -> Hooks {
        self.annotated(hooks, json!({ "key": "value" })).unwrap()
    }

    fn annotated(&self, hooks: Value, annotations: Value) -> Result<Hooks, HookError> {
        let document = json!({ "ociVersion": "1.0.2", "annotations": annotations, "hooks": hooks });
        let spec: Spec = serde_json::from_value(document).unwrap();
        Hooks::of("c1", &spec, self.0.path())
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap()
    }

    /// What processes hold that have it open for writing: the first word when there is one, the end when the last one
    /// is gone.
    fn fifo(&self) -> (oneshot::Receiver<()>, JoinHandle<()>) {
        let path = self.0.path().join("fifo");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let mut fifo = fs::File::open(path).unwrap();
            fifo.read_exact(&mut [0]).unwrap();
            let _ = sender.send(());
            fifo.read_to_end(&mut Vec::new()).unwrap();
        });
        (receiver, thread)
    }
}

fn sh(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

#[tokio::test]
async fn they_run_in_order_and_are_told_the_state() {
    let bundle = Bundle::new();
    let record = |kind: &str| sh(&format!("echo {kind} $(cat) >>record"));
    let hooks = bundle.hooks(json!({
        "poststop": [record("poststop")],
        "poststart": [record("poststart")],
        "createRuntime": [record("createRuntime-0"), record("createRuntime-1")],
        "prestart": [record("prestart")],
    }));
    hooks.create(41).await.unwrap();
    hooks.poststart(41).await.unwrap();
    hooks.poststop().await;
    let record = bundle.text("record");
    let told: Vec<(&str, Value)> = record
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(kind, state)| (kind, serde_json::from_str(state).unwrap()))
        .collect();
    let state = |status: &str| {
        json!({ "ociVersion": "1.1.0", "id": "c1", "status": status, "pid": 41, "bundle": bundle.0.path(),
            "annotations": { "key": "value" } })
    };
    let mut stopped = state("stopped");
    stopped.as_object_mut().unwrap().remove("pid");
    let wanted = [
        ("prestart", state("creating")),
        ("createRuntime-0", state("creating")),
        ("createRuntime-1", state("creating")),
        ("poststart", state("running")),
        ("poststop", stopped),
    ];
    assert_eq!(told, wanted);
}

#[tokio::test]
async fn arguments_environment_and_directory_are_the_documents() {
    let bundle = Bundle::new();
    let script = "tr '\\0' '\\n' </proc/$$/cmdline >cmdline; tr '\\0' '\\n' </proc/$$/environ >environ; ps -o sid= -p $$ >session; echo $$ >pid";
    let written = |env: Value| json!({ "path": "/bin/sh", "args": ["called", "-c", script, "", "b c"], "env": env });
    bundle.hooks(json!({ "prestart": [written(json!(["Z=1", "A=x=y", "EMPTY="]))] })).create(1).await.unwrap();
    assert_eq!(bundle.text("cmdline"), format!("called\n-c\n{script}\n\nb c\n"));
    let environment = bundle.text("environ");
    let mut lines: Vec<&str> = environment.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["A=x=y", "EMPTY=", "Z=1"]);
    assert_eq!(bundle.text("session").trim(), bundle.text("pid").trim());

    bundle.hooks(json!({ "prestart": [written(json!([]))] })).create(1).await.unwrap();
    assert_eq!(bundle.text("environ"), "", "none is not ours");
    // As runc does it.
    bundle.hooks(json!({ "prestart": [written(Value::Null)] })).create(1).await.unwrap();
    let path = format!("PATH={}", std::env::var("PATH").unwrap());
    assert!(bundle.text("environ").lines().any(|line| line == path), "{path} is not there");

    // Without arguments, the program has its path for a name.
    let error = bundle.hooks(json!({ "prestart": [{ "path": "/bin/cp", "env": [] }] })).create(1).await.unwrap_err();
    assert!(error.to_string().contains("/bin/cp: missing file operand"), "{error}");
}

#[tokio::test]
async fn the_first_that_fails_is_the_last() {
    let bundle = Bundle::new();
    let failing = sh("echo out; echo err >&2; exit 3");
    let list = json!([sh("echo 0 >>record"), failing, sh("echo 2 >>record")]);
    let hooks = bundle.hooks(json!({ "createRuntime": list, "poststart": list, "poststop": list }));
    let error = hooks.create(1).await.unwrap_err();
    let wanted = "the createRuntime hook #1 (/bin/sh) failed with exit status 3; it said: out\nerr";
    assert_eq!(error.to_string(), wanted);
    let error = hooks.poststart(1).await.unwrap_err().to_string();
    assert!(error.starts_with("the poststart hook #1 "), "{error}");
    assert_eq!(bundle.text("record"), "0\n0\n");
    // But of these, all run.
    hooks.poststop().await;
    assert_eq!(bundle.text("record"), "0\n0\n0\n2\n");

    let error = bundle.hooks(json!({ "prestart": [sh("kill -TERM $$")] })).create(1).await.unwrap_err();
    assert_eq!(error.to_string(), "the prestart hook #0 (/bin/sh) failed with signal 15 and said nothing");
}

#[tokio::test]
async fn only_the_last_words_are_kept() {
    let bundle = Bundle::new();
    let hooks = bundle.hooks(json!({ "prestart": [sh("yes word | head -c 1000000; echo; echo why; exit 1")] }));
    let HookError::Failed { words, .. } = hooks.create(1).await.unwrap_err() else { panic!("it has failed") };
    assert_eq!(words.bytes.len(), LAST_WORDS);
    let text = words.to_string();
    assert!(text.starts_with("; its last words: ...") && text.ends_with("word\n\nwhy"), "{text}");
}

#[tokio::test]
async fn a_timeout_kills_the_whole_session() {
    let bundle = Bundle::new();
    let (_, gone) = bundle.fifo();
    // `timeout` makes a process group of its own.
    let mut hook = sh("exec 9>fifo; timeout 1000 sleep 1000 & sleep 1000 & echo waiting; echo >&9; sleep 1000");
    hook["timeout"] = 2.into();
    let error = bundle.hooks(json!({ "poststart": [hook] })).poststart(1).await.unwrap_err();
    let wanted = "the poststart hook #0 (/bin/sh) did not end in 2 s (its timeout) and was killed; it said: waiting";
    assert_eq!(error.to_string(), wanted);
    gone.join().unwrap();
}

// The clock goes on as soon as there is nothing to do.
#[tokio::test(start_paused = true)]
async fn without_a_timeout_there_is_a_limit_all_the_same() {
    let bundle = Bundle::new();
    let error = bundle.hooks(json!({ "prestart": [sh("sleep 1000")] })).create(1).await.unwrap_err().to_string();
    assert!(error.contains("did not end in 120 s (it has no timeout, so limits.hook_s)"), "{error}");
}

#[tokio::test]
async fn nobody_waits_for_a_child_that_holds_the_output() {
    let bundle = Bundle::new();
    bundle.hooks(json!({ "prestart": [sh("sleep 1000 & echo $! >pid")] })).create(1).await.unwrap();
    let left = bundle.text("pid").trim().parse().unwrap();
    let left = rustix::process::Pid::from_raw(left).unwrap();
    // It was not asked to end: it lives, and is to be ended here.
    rustix::process::kill_process(left, rustix::process::Signal::KILL).unwrap();

    // What a hook that fails has left is killed, above all what never stops writing.
    let (_, gone) = bundle.fifo();
    let hooks = bundle.hooks(json!({ "prestart": [sh("exec 9>fifo; echo >&9; yes & exit 3")] }));
    let error = hooks.create(1).await.unwrap_err().to_string();
    assert!(error.contains("exit status 3"), "{error}");
    gone.join().unwrap();
}

#[tokio::test]
async fn a_state_that_is_not_read_holds_up_nothing() {
    let bundle = Bundle::new();
    let large = json!({ "large": "x".repeat(1 << 20) });
    let scripts = ["exit 0", "exec <&-; echo >closed; exit 0", "head -c 10 >head", "wc -c >count"];
    let hooks = json!({ "createRuntime": scripts.map(sh) });
    bundle.annotated(hooks, large).unwrap().create(1).await.unwrap();
    assert_eq!(bundle.text("head"), r#"{"ociVersi"#);
    assert!(bundle.text("count").trim().parse::<usize>().unwrap() > 1 << 20);
}

#[tokio::test]
async fn one_that_nobody_waits_for_is_killed() {
    let bundle = Bundle::new();
    let (runs, gone) = bundle.fifo();
    let hooks = bundle.hooks(json!({ "prestart": [sh("exec 9>fifo; sleep 1000 & echo >&9; sleep 1000")] }));
    tokio::select! {
        ended = hooks.create(1) => panic!("{ended:?}"),
        ran = runs => ran.unwrap(),
    }
    gone.join().unwrap();
}

#[tokio::test]
async fn what_cannot_be_started_is_named() {
    let bundle = Bundle::new();
    let missing = bundle.hooks(json!({ "prestart": [{ "path": "/nonexistent/hook" }] }));
    let error = missing.create(1).await.unwrap_err().to_string();
    assert!(error.starts_with("cannot start the prestart hook #0 (/nonexistent/hook) in /"), "{error}");
    assert!(error.contains("No such file"), "{error}");
    let hooks = bundle.hooks(json!({ "prestart": [sh("exit 0")] }));
    let path = bundle.0.path().to_owned();
    drop(bundle);
    let error = hooks.create(1).await.unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()) && error.contains("No such file"), "{error}");
}

#[test]
fn what_is_no_hook_is_refused_before_anything_runs() {
    let bundle = Bundle::new();
    for (hook, what) in [
        (json!({ "path": "hook" }), "no absolute path"),
        (json!({ "path": "" }), "no absolute path"),
        (json!({ "path": "/hook", "timeout": 0 }), "the timeout 0"),
        (json!({ "path": "/hook", "timeout": -1 }), "the timeout -1"),
        (json!({ "path": "/hook", "env": ["A=1", "B"] }), "the env entry \"B\""),
        (json!({ "path": "/hook", "args": ["a\0b"] }), "a NUL"),
        (json!({ "path": "/hook", "env": ["A=\0"] }), "a NUL"),
        (json!({ "path": "/ho\0ok" }), "a NUL"),
    ] {
        let hooks = json!({ "poststop": [{ "path": "/bin/true" }, hook] });
        let error = bundle.annotated(hooks, json!({})).unwrap_err();
        assert!(matches!(error, HookError::Invalid { .. }), "{error}");
        let error = error.to_string();
        assert!(error.starts_with("the poststop hook #1 (") && error.contains(what), "{error}");
    }
    // Whatever a timeout may be at most.
    bundle.annotated(json!({ "prestart": [{ "path": "/hook", "timeout": i64::MAX }] }), json!({})).unwrap();
}

#[tokio::test]
async fn the_longest_timeout_is_one() {
    let bundle = Bundle::new();
    let mut hook = sh("exit 0");
    hook["timeout"] = i64::MAX.into();
    bundle.hooks(json!({ "prestart": [hook] })).create(1).await.unwrap();
}
