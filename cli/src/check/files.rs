//! husk's own files: the shim where containerd finds it, what a pod is made of, the configuration, and room in `/run`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use husk_shim::VERSION;
use husk_shim::config::{Config, ConfigError};

use super::containerd::{Containerd, LIMIT};
use super::{Point, one_line};
use crate::host::{Host, find_program};
use crate::installed::Installed;
use crate::process::Answer;

/// What containerd runs for the runtime type `io.containerd.husk.v2`.
const SHIM: &str = "containerd-shim-husk-v2";
/// In `/run` a pod has a state file, a root's directory and two logs of 64 KiB by default; less is no room.
const LEAST_RUN: u64 = 1 << 20;
/// Room for some 100 pods.
const ENOUGH_RUN: u64 = 16 << 20;

const REINSTALL: &str = "install husk again: make install";

/// The points about the shim, and about what is installed of its version.
pub fn points(host: &Host, containerd: &Containerd) -> (Point, Vec<Point>) {
    let (shim, version) = shim(containerd);
    let version = version.unwrap_or_else(|| VERSION.to_owned());
    let mut points = vec![parts(&Installed::of(host, &version))];
    points.extend(others(host, &version));
    (shim, points)
}

/// The shim, and which version it is.
fn shim(containerd: &Containerd) -> (Point, Option<String>) {
    let name = "husk.shim";
    let Some(path) = find_program(&containerd.path, SHIM) else {
        let whose = if containerd.path_is_known { "the running containerd's PATH" } else { "a service's usual PATH" };
        let directories: Vec<String> = containerd.path.iter().map(|path| path.display().to_string()).collect();
        let what = format!("{SHIM} is not in {whose} ({})", directories.join(":"));
        return (Point::failed(name, what, REINSTALL), None);
    };
    let shown = path.display();
    let text = match Answer::text(Command::new(&path).arg("-v"), LIMIT) {
        Ok(text) => text,
        Err(cause) => {
            let what = format!("{shown} does not say its version: {cause}");
            return (Point::failed(name, what, REINSTALL), None);
        }
    };
    let Some(version) = text.lines().find_map(|line| line.trim().strip_prefix("Version: ")) else {
        let what = format!("{shown} does not say its version: is it husk's?");
        return (Point::failed(name, what, REINSTALL), None);
    };
    let point = if version == VERSION {
        Point::ok(name, format!("{version} ({shown})"))
    } else {
        let what = format!("{shown} is version {version}, and this is husk {VERSION}");
        Point::warning(name, what, "install both from one build: make install")
    };
    (point, Some(version.to_owned()))
}

/// The files that the shim's pods are made of.
fn parts(installed: &Installed) -> Point {
    let name = "husk.files";
    let shown = installed.directory.display();
    if !installed.directory.is_dir() {
        let what = format!("{shown} is not there: nothing is installed of version {}", installed.version);
        return Point::failed(name, what, REINSTALL);
    }
    let problems: Vec<String> =
        installed.files.iter().filter_map(|file| Some(format!("{} {}", file.name, file.problem.as_ref()?))).collect();
    if !problems.is_empty() {
        return Point::failed(name, format!("{shown}: {}", problems.join(", ")), REINSTALL);
    }
    let vmm = installed.directory.join("husk-vmm");
    match Answer::text(Command::new(&vmm).arg("--version"), LIMIT) {
        Err(cause) => Point::failed(name, format!("{} does not run: {cause}", vmm.display()), REINSTALL),
        Ok(text) if text.trim() != format!("husk-vmm {}", installed.version) => {
            let what = format!(
                "{} says that it is {:?}, in the directory of {}",
                vmm.display(),
                text.trim(),
                installed.version
            );
            Point::failed(name, what, REINSTALL)
        }
        Ok(_) => {
            let names: Vec<&str> = installed.files.iter().map(|file| file.name).collect();
            Point::ok(name, format!("{shown}: {}", names.join(" ")))
        }
    }
}

/// Versions that only pods that run may still need.
fn others(host: &Host, version: &str) -> Option<Point> {
    let name = "husk.versions";
    let all = match Installed::all(host) {
        Ok(all) => all,
        Err(cause) => {
            let what = format!("cannot read {}: {cause}", host.lib.display());
            return Some(Point::warning(name, what, "see that it is a directory that everybody may read"));
        }
    };
    let others: Vec<&str> =
        all.iter().map(|installed| installed.version.as_str()).filter(|other| *other != version).collect();
    if others.is_empty() {
        return None;
    }
    let what = format!("also installed: {}; pods that were started with them go on with them", others.join(" "));
    Some(Point::note(name, what))
}

/// husk's configuration.
pub fn configuration(host: &Host) -> Point {
    let name = "husk.config";
    let path = host.etc.join("husk/config.toml");
    match Config::read(&path) {
        Ok(config) => {
            let (memory, vcpus) = (config.vm.memory_mib, config.vm.vcpus);
            let cpus = if vcpus == 1 { "CPU" } else { "CPUs" };
            Point::ok(name, format!("{}: a pod without limits gets {memory} MiB and {vcpus} {cpus}", path.display()))
        }
        Err(ConfigError::Read { cause, .. }) if cause.kind() == ErrorKind::NotFound => {
            Point::ok(name, format!("no {}: the defaults hold", path.display()))
        }
        Err(cause) => Point::failed(name, one_line(&cause), "correct it; docs/operations.md lists the keys"),
    }
}

/// Room for the pods' directories.
pub fn run_space(host: &Host) -> Point {
    let shown = host.run.display().to_string();
    match rustix::fs::statvfs(&host.run) {
        Ok(space) => {
            let read_only = space.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY);
            judge_space(&shown, space.f_bavail.saturating_mul(space.f_frsize), read_only, writable(&host.pods()))
        }
        Err(cause) => {
            let what = format!("{shown}: {cause}");
            Point::failed("run.space", what, format!("mount it: mount -t tmpfs run {shown}"))
        }
    }
}

/// Whether pods' directories can be made in this directory; that it is not there yet is as good.
fn writable(pods: &Path) -> bool {
    match fs::symlink_metadata(pods) {
        Ok(metadata) => metadata.is_dir(),
        Err(cause) => cause.kind() == ErrorKind::NotFound,
    }
}

fn judge_space(shown: &str, free: u64, read_only: bool, writable: bool) -> Point {
    let name = "run.space";
    let kib = free >> 10;
    let room = if kib < 10 << 10 { format!("{kib} KiB") } else { format!("{} MiB", kib >> 10) };
    if read_only {
        return Point::failed(name, format!("{shown} is mounted read-only"), format!("mount -o remount,rw {shown}"));
    }
    if !writable {
        let what = format!("{shown}/husk is not a directory, and pods have theirs in it");
        return Point::failed(name, what, "remove it: husk makes it anew");
    }
    let remedy = format!("see what fills it: du -xh {shown} | sort -h");
    if free < LEAST_RUN {
        return Point::failed(name, format!("{room} are free in {shown}: no room for a pod's directory"), remedy);
    }
    if free < ENOUGH_RUN {
        return Point::warning(name, format!("{room} are free in {shown}: room for a few pods only"), remedy);
    }
    Point::ok(name, format!("{room} are free in {shown}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use crate::installed::make;
    use std::os::unix::fs::PermissionsExt;

    fn host() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        fs::create_dir_all(host.etc.join("husk")).unwrap();
        make(&host, VERSION);
        (root, host)
    }

    fn script(path: &Path, text: &str) {
        fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_shim_is_found_and_asked() {
        let (root, host) = host();
        let at = root.path().join("usr/bin").join(SHIM);
        let judge = || shim(&Containerd::find(&host));
        assert!(judge().0.what.contains("is not in a service's usual PATH"));
        script(&at, &format!("echo \"$0:\"; echo '  Version: {VERSION}'"));
        assert_eq!((judge().0.state, judge().1.as_deref()), (State::Ok, Some(VERSION)));
        script(&at, "echo '  Version: 0.0.9'");
        assert_eq!((judge().0.state, judge().1.as_deref()), (State::Warning, Some("0.0.9")));
        script(&at, "echo hello");
        assert!(judge().0.what.contains("is it husk's?"));
        fs::write(&at, "").unwrap();
        assert_eq!(judge().0.state, State::Failed);
    }

    #[test]
    fn a_version_is_whole_or_not() {
        let (_root, host) = host();
        // Our small ELF file is whole, but does not run.
        let judge = || parts(&Installed::of(&host, VERSION));
        assert!(judge().what.contains("does not run"), "{:?}", judge());
        fs::remove_file(host.lib.join(VERSION).join("vmlinux")).unwrap();
        assert!(judge().what.ends_with("vmlinux is not there"), "{:?}", judge());
        assert!(parts(&Installed::of(&host, "9.9.9")).what.contains("nothing is installed of version 9.9.9"));
        assert!(others(&host, VERSION).is_none());
        make(&host, "0.0.9");
        assert!(others(&host, VERSION).unwrap().what.contains("also installed: 0.0.9;"));
    }

    #[test]
    fn the_configuration_is_read_as_the_shim_reads_it() {
        let (_root, host) = host();
        assert_eq!(configuration(&host).state, State::Ok);
        let path = host.etc.join("husk/config.toml");
        fs::write(&path, "[vm]\nvcpus = 2\n").unwrap();
        assert!(configuration(&host).what.contains("512 MiB and 2 CPUs"));
        fs::write(&path, "[vm]\nmemroy_mib = 2\n").unwrap();
        let point = configuration(&host);
        assert_eq!(point.state, State::Failed);
        assert!(point.what.contains("line 2") && point.what.contains("memroy_mib") && !point.what.contains('\n'));
    }

    #[test]
    fn room_is_judged() {
        let state = |free, read_only, writable| judge_space("/run", free, read_only, writable).state;
        assert_eq!(state(1 << 30, false, true), State::Ok);
        assert_eq!(state(2 << 20, false, true), State::Warning);
        assert_eq!(state(4096, false, true), State::Failed);
        assert_eq!(state(1 << 30, true, true), State::Failed);
        assert_eq!(state(1 << 30, false, false), State::Failed);
        assert!(judge_space("/run", 4096, false, true).what.contains("4 KiB are free"));
        let (_root, host) = host();
        assert!(run_space(&host).remedy.unwrap().contains("mount -t tmpfs"));
        fs::create_dir(&host.run).unwrap();
        fs::write(host.pods(), "").unwrap();
        assert!(run_space(&host).what.contains("not a directory"));
    }
}
