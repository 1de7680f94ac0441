//! `husk check`: all is well in the test bed, and each precondition is broken in turn. What is broken is mended again,
//! whatever happens to the case.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use husk_tests::aside::Aside;
use husk_tests::ctr::Output;
use husk_tests::host::leaves_nothing;
use husk_tests::husk::{husk, json, output_of};
use serde_json::Value;

fn installed(name: &str) -> PathBuf {
    Path::new("/usr/lib/husk").join(env!("CARGO_PKG_VERSION")).join(name)
}

fn points(output: &Output) -> Vec<Value> {
    json(output)["points"].as_array().unwrap().clone()
}

/// The points that keep pods from running.
fn failed(output: &Output) -> Vec<Value> {
    points(output).into_iter().filter(|point| matches!(point["state"].as_str(), Some("failed" | "unknown"))).collect()
}

/// husk says that it is unable, for this reason alone, with a remedy.
fn unable(name: &str, words: &[&str]) {
    let output = husk(&["check", "--json"]);
    let failed = failed(&output);
    let names: Vec<&str> = failed.iter().map(|point| point["name"].as_str().unwrap()).collect();
    assert_eq!((output.status, json(&output)["able"].as_bool(), names), (1, Some(false), vec![name]), "{failed:?}");
    let what = failed[0]["what"].as_str().unwrap();
    for word in words {
        assert!(what.contains(word), "{word:?} is not in: {what}");
    }
    assert!(failed[0]["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{failed:?}");
}

#[test]
fn check_passes_on_a_good_host() {
    leaves_nothing(|| {
        let output = husk(&["check", "--json"]);
        assert_eq!((output.status, failed(&output)), (0, Vec::new()), "{}", output.text());
        assert_eq!(json(&output)["able"], true);
        let points = points(&output);
        let state = |name: &str| points.iter().find(|point| point["name"] == name).unwrap()["state"].clone();
        let network = ["network.tap", "network.redirect", "network.localhost"];
        for name in ["kvm.guest", "kvm.capabilities", "cgroup", "husk.files", "husk.shim", "containerd.running"]
            .into_iter()
            .chain(network)
        {
            assert_eq!(state(name), "ok", "{name}");
        }
        assert_eq!(state("containerd.runtime"), "note");
        let output = husk(&["check"]);
        assert_eq!(output.status, 0);
        assert!(output.text().ends_with("\nhusk can run pods on this host.\n"), "{}", output.text());
        assert!(!output.text().contains('\x1b'), "colour in a pipe");
    });
}

#[test]
fn check_names_a_missing_kvm() {
    let _aside = Aside::move_away("/dev/kvm");
    unable("kvm.device", &["/dev/kvm is not there"]);
}

#[test]
fn check_names_a_kvm_that_is_not_permitted() {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "husk", "check", "--json"]);
    let output = output_of(command);
    let failed = failed(&output);
    assert_eq!(output.status, 1);
    assert_eq!((&failed[0]["name"], &failed[0]["state"]), (&"kvm.device".into(), &"failed".into()), "{failed:?}");
    assert!(failed[0]["what"].as_str().unwrap().contains("user 65534"), "{failed:?}");
    // What only root may try is not called broken.
    assert!(failed.iter().skip(1).all(|point| point["state"] == "unknown"), "{failed:?}");
}

#[test]
fn check_names_a_kvm_that_is_none() {
    let _aside = Aside::move_away("/dev/kvm");
    // A character device that is something else: KVM_GET_API_VERSION fails on it.
    std::os::unix::fs::symlink("/dev/null", "/dev/kvm").unwrap();
    unable("kvm.capabilities", &["version -1"]);
}

/// husk says that it is able, with this warning alone.
fn warned(name: &str, words: &[&str]) {
    let output = husk(&["check", "--json"]);
    let points = points(&output);
    let warnings: Vec<&Value> = points.iter().filter(|point| point["state"] == "warning").collect();
    let names: Vec<&str> = warnings.iter().map(|point| point["name"].as_str().unwrap()).collect();
    assert_eq!((output.status, json(&output)["able"].as_bool(), names), (0, Some(true), vec![name]), "{warnings:?}");
    let what = warnings[0]["what"].as_str().unwrap();
    for word in words {
        assert!(what.contains(word), "{word:?} is not in: {what}");
    }
    assert!(warnings[0]["remedy"].as_str().is_some_and(|remedy| !remedy.is_empty()), "{warnings:?}");
}

#[test]
fn check_warns_of_a_missing_tun() {
    let _aside = Aside::move_away("/dev/net/tun");
    warned("network.tap", &["/dev/net/tun: No such file or directory", "only pods without network interfaces run"]);
}

#[test]
fn check_warns_of_a_tun_that_is_none() {
    let _aside = Aside::move_away("/dev/net/tun");
    std::os::unix::fs::symlink("/dev/null", "/dev/net/tun").unwrap();
    warned("network.tap", &["Inappropriate ioctl for device"]);
}

#[test]
fn check_names_a_missing_kernel() {
    let _aside = Aside::move_away(installed("vmlinux"));
    unable("husk.files", &["vmlinux is not there"]);
}

#[test]
fn check_names_a_truncated_vmm() {
    let path = installed("husk-vmm");
    let half = fs::read(&path).unwrap();
    let _aside = Aside::replace(path, &half[..half.len() / 2]);
    unable("husk.files", &["husk-vmm is damaged or cut short"]);
}

#[test]
fn check_names_a_vmm_of_another_version() {
    let _aside = Aside::replace(installed("husk-vmm"), &fs::read("/usr/bin/true").unwrap());
    unable("husk.files", &["/husk-vmm says that it is"]);
}

#[test]
fn check_names_a_stub_that_may_not_be_executed() {
    let path = installed("husk-stub");
    let aside = Aside::replace(&path, &fs::read(&path).unwrap());
    fs::set_permissions(&aside.path, fs::Permissions::from_mode(0o644)).unwrap();
    unable("husk.files", &["husk-stub may not be executed"]);
}

#[test]
fn check_names_a_missing_shim() {
    let _aside = Aside::move_away("/usr/bin/containerd-shim-husk-v2");
    unable("husk.shim", &["containerd-shim-husk-v2 is not in the running containerd's PATH"]);
}

#[test]
fn check_names_a_wrong_key_of_husks_configuration() {
    let _aside = Aside::replace("/etc/husk/config.toml", b"[vm]\nmemroy_mib = 64\n");
    unable("husk.config", &["/etc/husk/config.toml", "line 2", "memroy_mib"]);
}

#[test]
fn check_names_containerds_broken_configuration() {
    let _aside = Aside::replace("/etc/containerd/config.toml", b"version = 2\n[plugins\n");
    unable("containerd.config", &["/etc/containerd/config.toml", "line 2"]);
}

#[test]
fn check_names_a_runtime_without_its_program() {
    let text = |kind: &str| {
        let section = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.husk]";
        format!("version = 2\n{section}\nruntime_type = \"{kind}\"\n")
    };
    {
        let _aside = Aside::replace("/etc/containerd/config.toml", text("io.containerd.husk.v3").as_bytes());
        unable("containerd.runtime", &["containerd-shim-husk-v3", "not in containerd's PATH"]);
    }
    let _aside = Aside::replace("/etc/containerd/config.toml", text("io.containerd.husk.v2").as_bytes());
    let output = husk(&["check", "--json"]);
    let points = points(&output);
    let runtime = points.iter().find(|point| point["name"] == "containerd.runtime").unwrap();
    assert_eq!((output.status, &runtime["state"]), (0, &"ok".into()), "{runtime}");
}

#[test]
fn check_names_a_containerd_that_does_not_answer() {
    let _aside = Aside::move_away("/run/containerd/containerd.sock");
    unable("containerd.running", &["/run/containerd/containerd.sock"]);
}

/// `/run` with another size.
fn resize_run(size: &str) {
    let options = format!("remount,size={size}");
    assert!(Command::new("mount").args(["-o", &options, "/run"]).status().unwrap().success());
}

#[test]
fn check_names_a_full_run() {
    struct Mend;
    impl Drop for Mend {
        fn drop(&mut self) {
            resize_run("50%");
        }
    }
    let space = rustix::fs::statvfs("/run").unwrap();
    let used = (space.f_blocks - space.f_bfree) * space.f_frsize;
    let _mend = Mend;
    resize_run(&(used + 256 * 1024).to_string());
    unable("run.space", &["free in /run", "no room"]);
}
