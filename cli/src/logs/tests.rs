use super::*;
use std::fs;

fn host() -> (tempfile::TempDir, Host, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let host = Host::below(root.path());
    let directory = host.pods().join("default/c1");
    fs::create_dir_all(&directory).unwrap();
    (root, host, directory)
}

fn shown(host: &Host, arguments: &Arguments, escape: bool) -> Result<String, LogsError> {
    let mut printer = Printer { out: Vec::new(), escape, title: None };
    show(host, arguments, &mut printer)?;
    Ok(String::from_utf8(printer.out).unwrap())
}

fn arguments(id: &str) -> Arguments {
    Arguments { id: id.to_owned(), namespace: None, follow: false, from: None }
}

#[test]
fn both_logs_are_shown_in_sections() {
    let (_root, host, directory) = host();
    fs::write(directory.join(OLD_LOG), "one\n").unwrap();
    fs::write(directory.join(LOG), "two\n").unwrap();
    fs::write(directory.join(CONSOLE), "panic\r\n\x1b[2Jrest").unwrap();
    let text = shown(&host, &arguments("c1"), false).unwrap();
    assert_eq!(text, "== husk's log ==\none\ntwo\n\n== the guest's console ==\npanic\r\n\x1b[2Jrest\n");
    let text = shown(&host, &arguments("c1"), true).unwrap();
    assert!(text.ends_with("panic\\r\n\\x1b[2Jrest\n") && !text.contains('\x1b'), "{text}");
}

#[test]
fn a_pod_is_found_in_whatever_namespace() {
    let (_root, host, directory) = host();
    fs::write(directory.join(LOG), "default's\n").unwrap();
    fs::create_dir_all(host.pods().join("other/c1")).unwrap();
    let cause = shown(&host, &arguments("c1"), false).unwrap_err().to_string();
    assert!(cause.contains("default and other") && cause.contains("--namespace"), "{cause}");
    let chosen = Arguments { namespace: Some("default".to_owned()), ..arguments("c1") };
    assert!(shown(&host, &chosen, false).unwrap().contains("default's"));
}

#[test]
fn an_ended_pod_is_in_containerds_log() {
    let (root, host, _) = host();
    let file = root.path().join("containerd.log");
    let log = "time=\"1\" level=info msg=a sandbox=c2\n\
               time=\"2\" level=info msg=\"it says sandbox=c2 there\" sandbox=c20 stage=x\n\
               level=info msg=\"a line of containerd's about sandbox=c2\"\n\
               time=\"3\" level=error msg=b sandbox=c2 stage=create\n";
    fs::write(&file, log).unwrap();
    let from = |id: &str| Arguments { from: Some(file.clone()), ..arguments(id) };
    let text = shown(&host, &from("c2"), false).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.contains("msg=a ") && text.contains("msg=b "), "{text}");
    let cause = shown(&host, &from("c3"), false).unwrap_err().to_string();
    assert!(cause.contains("no pod c3") && cause.contains("containerd.log"), "{cause}");
    let absent = Arguments { from: Some("/nonexistent".into()), ..arguments("c2") };
    assert!(shown(&host, &absent, false).unwrap_err().to_string().contains("/nonexistent"));
}

#[test]
fn what_is_new_is_followed_over_a_turn() {
    let (_root, _, directory) = host();
    let mut source = Source::new("x", directory.join(LOG), Some(directory.join(OLD_LOG)));
    assert_eq!(source.read(false).unwrap(), "");
    fs::write(directory.join(LOG), "one\ntw").unwrap();
    assert_eq!(source.read(false).unwrap(), "one\n");
    let mut writer = fs::OpenOptions::new().append(true).open(directory.join(LOG)).unwrap();
    writer.write_all(b"o\nthree\n").unwrap();
    fs::rename(directory.join(LOG), directory.join(OLD_LOG)).unwrap();
    fs::write(directory.join(LOG), "four").unwrap();
    assert_eq!(source.read(false).unwrap(), "two\nthree\n");
    assert_eq!(source.read(true).unwrap(), "four");
    assert_eq!(source.read(true).unwrap(), "");
}

#[test]
fn following_ends_with_the_pod() {
    let (_root, _, directory) = host();
    fs::write(directory.join(LOG), "one\n").unwrap();
    let changes = watch(&directory).unwrap();
    fs::write(directory.join(CONSOLE), "last words").unwrap();
    assert!(!wait(&changes).unwrap());
    let end = directory.clone();
    let mut printer = Printer { out: Vec::new(), escape: false, title: None };
    // The reader is at it, or comes too late: both must end.
    let ending = std::thread::spawn(move || {
        fs::remove_file(end.join(LOG)).unwrap();
        fs::remove_file(end.join(CONSOLE)).unwrap();
        fs::remove_dir(&end).unwrap();
    });
    let followed = of_pod(&directory, true, &mut printer);
    ending.join().unwrap();
    // Gone before it was watched is said; gone later is the end.
    assert!(followed.is_ok() || matches!(followed, Err(LogsError::Io { what: "watch", .. })));
}
