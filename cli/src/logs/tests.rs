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
    let opened = fs::File::open(&directory).unwrap().into();
    let mut source = Source::new("x", LOG, Some(OLD_LOG));
    assert_eq!(source.read(&opened, false).unwrap(), "");
    fs::write(directory.join(LOG), "one\ntw").unwrap();
    assert_eq!(source.read(&opened, false).unwrap(), "one\n");
    let mut writer = fs::OpenOptions::new().append(true).open(directory.join(LOG)).unwrap();
    writer.write_all(b"o\nthree\n").unwrap();
    fs::rename(directory.join(LOG), directory.join(OLD_LOG)).unwrap();
    fs::write(directory.join(LOG), "four").unwrap();
    assert_eq!(source.read(&opened, false).unwrap(), "two\nthree\n");
    assert_eq!(source.read(&opened, true).unwrap(), "four");
    assert_eq!(source.read(&opened, true).unwrap(), "");
}

/// Tells that something was written.
struct Told(std::sync::mpsc::Sender<Vec<u8>>);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn following_goes_on_to_the_pods_end() {
    let (_root, host, directory) = host();
    fs::write(directory.join(LOG), "one\n").unwrap();
    let (sender, told) = std::sync::mpsc::channel();
    let follower = std::thread::spawn(move || {
        let mut printer = Printer { out: Told(sender), escape: false, title: None };
        show(&host, &Arguments { follow: true, ..arguments("c1") }, &mut printer)
    });
    let expect = |wanted: &str| {
        let mut text = Vec::new();
        while text.len() < wanted.len() {
            text.extend(told.recv_timeout(std::time::Duration::from_secs(30)).unwrap());
        }
        assert_eq!(String::from_utf8(text).unwrap(), wanted);
    };
    expect("== husk's log ==\none\n");
    fs::write(directory.join(CONSOLE), "booting\n").unwrap();
    expect("\n== the guest's console ==\nbooting\n");
    // Its files are open, and a new pod of its name is there at once.
    let mut log = fs::OpenOptions::new().append(true).open(directory.join(LOG)).unwrap();
    log.write_all(b"the end").unwrap();
    for name in [LOG, CONSOLE] {
        fs::remove_file(directory.join(name)).unwrap();
    }
    fs::remove_dir(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join(LOG), "of another\n").unwrap();
    follower.join().unwrap().unwrap();
    expect("\n== husk's log ==\nthe end\n");
    assert!(told.try_iter().next().is_none());
}
