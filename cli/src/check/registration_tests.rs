use super::*;
use crate::check::{State, one_line};
use crate::host::Host;

/// A host with a shim in its PATH, and this configuration of containerd's.
fn judged(text: &str) -> (tempfile::TempDir, Point) {
    let root = tempfile::tempdir().unwrap();
    let host = Host::below(root.path());
    let programs = root.path().join("usr/bin");
    fs::create_dir_all(&programs).unwrap();
    for name in ["containerd-shim-husk-v2", "containerd-shim-kata-v2"] {
        fs::write(programs.join(name), "").unwrap();
    }
    let file = host.etc.join("containerd/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, text.replace("ROOT", root.path().to_str().unwrap())).unwrap();
    let point = point(&Configuration::read(&file).unwrap(), &Containerd::find(&host));
    (root, point)
}

#[test]
fn each_version_has_its_section() {
    for (version, section) in [(1, "cri"), (2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")] {
        let runtime = "runtime_type = \"io.containerd.husk.v2\"";
        let text = format!("version = {version}\n[plugins.\"{section}\".containerd.runtimes.husk]\n{runtime}\n");
        let (_root, point) = judged(&text);
        assert_eq!(point.state, State::Ok, "{point:?}");
        assert!(point.what.contains("husk = io.containerd.husk.v2"), "{point:?}");
    }
    // A file that says no version is of version 1.
    let (_root, point) = judged("[plugins.cri.containerd.runtimes.h]\nruntime_type = \"io.containerd.husk.v2\"\n");
    assert_eq!(point.state, State::Ok, "{point:?}");
}

#[test]
fn a_section_of_another_version_is_not_seen() {
    let (_root, point) = judged(
        "version = 3\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]\nruntime_type = \"io.containerd.husk.v2\"\n",
    );
    assert_eq!(point.state, State::Warning, "{point:?}");
    assert!(point.what.contains("io.containerd.cri.v1.runtime") && point.what.contains("version 3"), "{point:?}");
}

#[test]
fn not_registered_is_only_a_note() {
    for text in ["", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n"] {
        let (_root, point) = judged(text);
        assert_eq!(point.state, State::Note, "{point:?}");
        assert!(point.what.contains("ctr run --runtime io.containerd.husk.v2"), "{point:?}");
    }
}

#[test]
fn a_registration_that_leads_nowhere_is_a_failure() {
    let section = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]\n";
    for (runtime, word) in [
        ("runtime_type = \"io.containerd.husk.v3\"", "containerd-shim-husk-v3"),
        ("runtime_type = \"husk\"", "not of the form"),
        ("runtime_type = \"/nonexistent/shim\"", "/nonexistent/shim"),
        ("runtime_type = \"io.containerd.husk.v2\"\nruntime_path = \"/nonexistent/shim\"", "/nonexistent/shim"),
        ("", "not of the form"),
    ] {
        let (_root, point) = judged(&format!("{section}{runtime}\n"));
        assert_eq!(point.state, State::Failed, "{runtime}: {point:?}");
        assert!(point.what.contains(word), "{point:?}");
        assert!(point.remedy.unwrap().contains("runtimes.husk"));
    }
    let (_root, point) = judged(&format!("{section}runtime_path = \"ROOT/usr/bin/containerd-shim-husk-v2\"\n"));
    assert_eq!(point.state, State::Ok, "{point:?}");
}

#[test]
fn imports_are_followed() {
    let (root, _) = judged("version = 2\nimports = [\"conf.d/*.toml\", \"config.toml\", \"absent.toml\"]\n");
    let etc = root.path().join("etc/containerd");
    fs::create_dir(etc.join("conf.d")).unwrap();
    fs::write(
        etc.join("conf.d/husk.toml"),
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]\nruntime_type = \"io.containerd.husk.v2\"\n",
    )
    .unwrap();
    fs::write(etc.join("conf.d/readme.txt"), "no TOML").unwrap();
    let configuration = Configuration::read(&etc.join("config.toml")).unwrap();
    let containerd = Containerd::find(&Host::below(root.path()));
    assert_eq!(point(&configuration, &containerd).state, State::Ok);
    assert!(configuration.point().what.contains("version 2, with 1 imported"), "{:?}", configuration.point());
    fs::write(etc.join("conf.d/broken.toml"), "a = \n").unwrap();
    let cause = Configuration::read(&etc.join("config.toml")).err().unwrap();
    let cause = one_line(&cause);
    assert!(cause.contains("broken.toml") && cause.contains("line 1") && !cause.contains('|'), "{cause}");
}

#[test]
fn no_file_is_no_failure() {
    let configuration = Configuration::read(Path::new("/nonexistent/config.toml")).unwrap();
    assert_eq!(configuration.point().state, State::Ok);
    assert!(configuration.point().what.contains("defaults"));
}

#[test]
fn a_switched_off_cri_is_said() {
    let (_root, point) = judged(
        "disabled_plugins = [\"cri\"]\n[plugins.cri.containerd.runtimes.husk]\nruntime_type = \"io.containerd.husk.v2\"\n",
    );
    assert_eq!(point.state, State::Warning);
    assert!(point.what.contains("disabled_plugins"));
}

#[test]
fn the_address_is_the_files() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("config.toml");
    fs::write(&file, "[grpc]\naddress = \"/run/other.sock\"\n").unwrap();
    assert_eq!(Configuration::read(&file).unwrap().address().as_deref(), Some("/run/other.sock"));
    fs::write(&file, "[grpc]\naddress = 3\n").unwrap();
    assert_eq!(Configuration::read(&file).unwrap().address(), None);
}
