use serde_json::{Value, json};

use super::*;

fn hooks(hooks: Value) -> Result<StartHooks, String> {
    let document = json!({ "ociVersion": "1.0.2", "annotations": { "key": "value" }, "hooks": hooks,
        "process": { "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["FROM=process", "PATH=/usr/bin:/bin"] } });
    let mut made =
        StartHooks::of(&serde_json::from_value(document).unwrap(), Place::Guest).map_err(|why| why.to_string())?;
    made.tell(Told { id: "name".to_owned(), bundle: "/the/bundle".into(), ..Told::default() });
    Ok(made)
}

fn sh(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["hook", "-c", script] })
}

fn run(list: &[Value]) -> Result<(), String> {
    hooks(json!({ "startContainer": list })).unwrap().start(|| Ok(()))
}

#[test]
fn a_hook_is_told_the_state_and_has_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("told");
    let script = format!("cat >{}; echo $FROM >>{}", file.display(), file.display());
    run(&[sh(&script)]).unwrap();
    let told = std::fs::read_to_string(&file).unwrap();
    let (state, from) = told.rsplit_once('}').unwrap();
    let state: Value = serde_json::from_str(&format!("{state}}}")).unwrap();
    assert_eq!(state["id"], "name");
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], "/the/bundle");
    assert_eq!(state["annotations"]["key"], "value");
    assert_eq!(state["pid"], std::process::id());
    assert_eq!(from, "process\n");
    // Its own environment is all that it has then.
    let mut own = sh(&format!("echo $FROM/$OWN >{}", file.display()));
    own["env"] = json!(["OWN=hook"]);
    run(&[own]).unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "/hook\n");
}

#[test]
fn the_first_that_fails_is_the_last() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ran");
    let ran = sh(&format!("echo >>{}", file.display()));
    let error = run(&[ran.clone(), sh("echo no room; exit 3"), ran.clone()]).unwrap_err();
    assert_eq!(error, "error running startContainer hook #1 (/bin/sh): exit status 3; it said: no room");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "\n");
    assert!(run(&[sh("kill -TERM $$")]).unwrap_err().contains("signal 15"));
    assert!(run(&[sh("exit 1")]).unwrap_err().ends_with("exit status 1 and said nothing"));
    let none = run(&[json!({ "path": "/no/such" })]).unwrap_err();
    assert!(none.contains("exit status 127; it said: exec /no/such: no such file or directory"), "{none}");
    let long = run(&[sh("yes word 2>/dev/null | head -c 1000000; echo why; exit 1")]).unwrap_err();
    assert!(long.ends_with("word\nwhy") && long.len() < LAST_WORDS + 200, "{long}");
    // Who it is to be comes first.
    let hooks = hooks(json!({ "startContainer": [ran] })).unwrap();
    let error = hooks.start(|| Err("nobody".to_owned())).unwrap_err();
    assert!(error.ends_with("it said: nobody"), "{error}");
}

#[test]
fn a_hook_that_takes_too_long_is_killed_with_what_it_started() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let mut slow = sh(&format!("(exec 9>{}; sleep 1000) & sleep 1000", fifo.display()));
    slow["timeout"] = 1.into();
    let reader = std::thread::spawn(move || std::fs::read(fifo).unwrap());
    let error = run(&[slow]).unwrap_err();
    assert!(error.contains("did not end in 1 s and was killed"), "{error}");
    // Its end: nobody has it open any more.
    assert_eq!(reader.join().unwrap(), b"");
    // A child that is left behind holds up nothing.
    run(&[sh("sleep 5 & exit 0")]).unwrap();
}

#[test]
fn hooks_that_cannot_be_run_are_refused_by_name() {
    let refused = |list: Value| hooks(list).unwrap_err();
    let create = refused(json!({ "createContainer": [{ "path": "nvidia-ctk" }] }));
    assert!(create.contains("hooks.createContainer[0] nvidia-ctk: its path is not absolute"), "{create}");
    let relative = refused(json!({ "startContainer": [sh("true"), { "path": "bin/true" }] }));
    assert!(relative.contains("hooks.startContainer[1] bin/true: its path is not absolute"), "{relative}");
    let timeout = refused(json!({ "startContainer": [{ "path": "/bin/true", "timeout": 0 }] }));
    assert!(timeout.contains("greater than 0"), "{timeout}");
    assert!(
        hooks(json!({ "startContainer": [{ "path": "/bin/true", "args": ["a\u{0}"] }] }))
            .unwrap_err()
            .contains("zero byte")
    );
    assert!(hooks(json!({ "createContainer": [] })).unwrap().create.is_empty());
}

#[test]
fn a_guest_runs_the_programs_that_it_was_given_in_the_place_of_the_hosts() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let hook = json!({ "path": "/host/only", "args": ["hook", "-c", format!("echo $0 $1 >{}", out.display()), "zero", "one"] });
    let mut hooks = hooks(json!({ "createContainer": [hook] })).unwrap();
    let unshared = hooks.create().unwrap_err();
    assert!(unshared.contains("1 with 0 programs"), "{unshared}");
    hooks.tell(Told { programs: vec!["/bin/sh".into()], ..Told::default() });
    hooks.create().unwrap();
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "zero one\n");
    hooks.tell(Told { programs: vec!["/no/such".into()], ..Told::default() });
    let missing = hooks.create().unwrap_err();
    assert!(
        missing.contains("createContainer hook #0 (/host/only)") && missing.contains("linked statically"),
        "{missing}"
    );
}

#[test]
fn absurd_times_are_no_overflow() {
    let slow = json!({ "path": "/bin/true", "timeout": i64::MAX });
    let hooks = hooks(json!({ "createContainer": [slow, slow, slow] })).unwrap();
    assert_eq!(hooks.creating(), Some(Duration::MAX));
    assert_eq!(StartHooks::default().creating(), Some(Duration::ZERO));
}
