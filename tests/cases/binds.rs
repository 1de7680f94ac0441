//! Bind mounts: directories and files of the host, in the container as with runc.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use husk_tests::ctr::{Detached, Output, Runtime, ctr};
use husk_tests::host::leaves_nothing;
use husk_tests::rootfs::PROBE;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::document::{both, document};
use crate::{busybox, refused};

/// A bind mount for the document.
fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "type": "bind", "source": source.to_str().unwrap(), "destination": destination, "options": options })
}

fn run(id: &str, root: &Path, runtime: Runtime, script: &str, mounts: &[Value]) -> Output {
    let file = document(root, script, |document| {
        document["mounts"].as_array_mut().unwrap().extend_from_slice(mounts);
        document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
    });
    ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", file.path().to_str().unwrap(), id])
}

/// The same script and the same mounts with each runtime: what both say, which has to be the same.
fn alike(script: &str, mounts: &[Value]) -> String {
    let root = busybox();
    let [runc, husk] = [("binds-runc", Runtime::Runc), ("binds-husk", Runtime::Husk)].map(|(id, runtime)| {
        let output = run(id, root.path(), runtime, script, mounts);
        assert_eq!(output.status, 0, "{id}: {}{}", output.text(), output.errors());
        output.text()
    });
    assert_eq!(husk, runc);
    husk
}

/// A file system of its own on a directory, until this is dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn on(path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn directories_and_files_are_read_and_written() {
    leaves_nothing(|| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("conf"), "from the host\n").unwrap();
        fs::write(host.path().join("log"), "begin\n").unwrap();
        fs::create_dir(host.path().join("data")).unwrap();
        fs::write(host.path().join("data/file"), "in a directory\n").unwrap();
        std::os::unix::fs::chown(host.path().join("data/file"), Some(1000), Some(7)).unwrap();
        let data = host.path().join("data");
        let script = "cat /made/for/conf /data/file; stat -c '%u %g %a %F' /data/file /data /made/for/conf; \
            echo written >/data/out; echo more >>/made/for/log; \
            echo no >/ro/out; echo no >/etc/ro-conf; rm /ro/file; mkdir /ro/x; cat /ro/out; ls /data /ro";
        let mounts = [
            bind(&data, "/data", &["rbind", "rw"]),
            bind(&host.path().join("conf"), "/made/for/conf", &["bind"]),
            bind(&host.path().join("log"), "/made/for/log", &["bind"]),
            bind(&data, "/ro", &["rbind", "ro"]),
            bind(&host.path().join("conf"), "/etc/ro-conf", &["rbind", "rprivate", "ro"]),
        ];
        let said = alike(script, &mounts);
        assert!(said.contains("from the host\nin a directory\n1000 7 644 regular file\n"), "{said}");
        assert_eq!(fs::read_to_string(data.join("out")).unwrap(), "written\n");
        // Once with each runtime.
        assert_eq!(fs::read_to_string(host.path().join("log")).unwrap(), "begin\nmore\nmore\n");
        assert!(data.join("file").exists());
    });
}

#[test]
fn what_is_read_only_is_so_on_the_hosts_side() {
    leaves_nothing(|| {
        let root = busybox();
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("file"), "kept").unwrap();
        let file = document(
            root.path(),
            "mount -o remount,rw,bind /ro && grep ' /ro ' /proc/mounts | cut -d' ' -f4 | cut -c1-2; \
             echo changed >/ro/file; rm /ro/file; touch /ro/new; chmod 777 /ro/file; ls /ro",
            |document| {
                document["mounts"].as_array_mut().unwrap().push(bind(host.path(), "/ro", &["rbind", "ro"]));
                for set in ["bounding", "permitted", "effective"] {
                    document["process"]["capabilities"][set].as_array_mut().unwrap().push("CAP_SYS_ADMIN".into());
                }
            },
        );
        let file = file.path().to_str().unwrap();
        let output = ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", file, "binds-ro"]);
        // The guest's own mount can be written then, and nothing has changed all the same.
        assert_eq!(output.text(), "rw\nfile\n", "{}", output.errors());
        assert_eq!(output.errors().matches("Read-only file system").count(), 4, "{}", output.errors());
        let metadata = fs::metadata(host.path().join("file")).unwrap();
        assert_eq!(
            (fs::read_to_string(host.path().join("file")).unwrap().as_str(), metadata.mode() & 0o777),
            ("kept", 0o644)
        );
    });
}

#[test]
fn mounts_below_the_source_come_with_it_where_wanted() {
    leaves_nothing(|| {
        let host = tempfile::tempdir().unwrap();
        let below = Tmpfs::on(&host.path().join("below"));
        fs::write(below.0.join("inner"), "inner\n").unwrap();
        fs::write(host.path().join("outer"), "outer\n").unwrap();
        let script = "cat /all/outer /all/below/inner; ls /one /one/below; echo x >/all/below/new && rm /all/below/new; \
            echo x >/none/below/new; [ $(stat -c %d /all) = $(stat -c %d /all/below) ] || echo another file system";
        let mounts = [
            bind(host.path(), "/all", &["rbind"]),
            bind(host.path(), "/one", &["bind"]),
            bind(host.path(), "/none", &["rbind", "rro"]),
        ];
        let said = alike(script, &mounts);
        assert_eq!(
            said,
            "outer\ninner\nbelow\nouter\nanother file system\n"
                .replace("below\nouter\n", "/one:\nbelow\nouter\n\n/one/below:\n")
        );
    });
}

#[test]
fn files_of_two_sources_are_not_one_file() {
    leaves_nothing(|| {
        let host = tempfile::tempdir().unwrap();
        let tmpfs = ["a", "b"].map(|name| Tmpfs::on(&host.path().join(name)));
        // Numbers of a new file system begin anew.
        for one in &tmpfs {
            fs::write(one.0.join("file"), "content").unwrap();
        }
        let inodes = tmpfs.each_ref().map(|one| fs::metadata(one.0.join("file")).unwrap().ino());
        assert_eq!(inodes[0], inodes[1]);
        let mounts = [bind(&tmpfs[0].0, "/a", &["rbind"]), bind(&tmpfs[1].0, "/b", &["rbind"])];
        let said =
            alike("[ /a/file -ef /b/file ] && echo the same; cp /a/file /b/copy && ls /b && rm /b/copy", &mounts);
        assert_eq!(said, "copy\nfile\n");
    });
}

#[test]
fn mount_options_hold_inside() {
    leaves_nothing(|| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("program"), "#!/bin/sh\necho runs\n").unwrap();
        fs::set_permissions(host.path().join("program"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let script = "/yes/program; /no/program; /tmpfs/x; cp /yes/program /small/; /small/program; \
            dd if=/dev/zero of=/small/big bs=64k count=4 2>/dev/null || echo full; \
            for at in /yes /no /small; do grep \" $at \" /proc/mounts | cut -d' ' -f4 | tr , '\\n' | grep -E '^(ro|rw|nosuid|nodev|noexec)$' | sort | tr '\\n' ' '; done";
        let mounts = [
            bind(host.path(), "/yes", &["rbind", "nosuid", "nodev"]),
            bind(host.path(), "/no", &["rbind", "noexec", "nosuid", "nodev", "ro"]),
            json!({ "type": "tmpfs", "source": "tmpfs", "destination": "/small", "options": ["noexec", "nosuid", "nodev", "size=128k"] }),
        ];
        let said = alike(script, &mounts);
        assert!(said.starts_with("runs\nfull\n"), "{said}");
    });
}

/// How mounts spread, as the kernel lists it. A mount is shared if the one that it is made in is: what is private says so.
#[test]
fn propagation_of_mounts_is_as_said() {
    leaves_nothing(|| {
        let (host, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        ["private", "plain"].iter().for_each(|name| fs::create_dir(host.path().join(name)).unwrap());
        let script = "for at in /a /a/private /a/plain /b /c /d /d/private /d/plain; do \
            grep -q \" $at \" /proc/self/mountinfo || echo no mount; \
            echo $at $(grep \" $at \" /proc/self/mountinfo | sed 's/ - .*//' | grep -oE 'shared|master|unbindable'); done";
        let tmpfs = |at: &str, option: &str| json!({ "type": "tmpfs", "source": "tmpfs", "destination": at, "options": [option] });
        let said = alike(
            script,
            &[
                bind(host.path(), "/a", &["rbind", "rshared"]),
                bind(other.path(), "/a/private", &["rbind", "rprivate"]),
                bind(other.path(), "/a/plain", &["rbind"]),
                bind(other.path(), "/b", &["rbind", "rprivate"]),
                bind(other.path(), "/c", &["bind", "unbindable"]),
                tmpfs("/d", "shared"),
                tmpfs("/d/private", "private"),
                tmpfs("/d/plain", "nodev"),
            ],
        );
        let wanted =
            "/a shared\n/a/private\n/a/plain shared\n/b\n/c unbindable\n/d shared\n/d/private\n/d/plain shared\n";
        assert_eq!(said, wanted);
    });
}

/// A program with the set-user-ID bit of another user, on a mount that heeds it and on one that does not.
#[test]
fn set_user_id_programs_are_as_the_mount_says() {
    leaves_nothing(|| {
        let root = busybox();
        fs::copy(PROBE, root.path().join("bin/probe")).unwrap();
        let script = "for at in /heeds /not; do cp /bin/probe $at/p; chown 1000 $at/p; chmod 4755 $at/p; \
            $at/p report | grep ^status.Uid=; done";
        let with = |options: &[&str], at: &str| json!({ "type": "tmpfs", "source": "tmpfs", "destination": at, "options": options });
        let (runc, husk) = both(root.path(), script, |document| {
            document["process"]["noNewPrivileges"] = false.into();
            let mounts = [with(&["nodev"], "/heeds"), with(&["nodev", "nosuid"], "/not")];
            document["mounts"].as_array_mut().unwrap().extend(mounts);
        });
        assert_eq!(husk, runc);
        let users: Vec<Vec<&str>> = husk.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(users, [["status.Uid=0", "1000", "1000", "1000"], ["status.Uid=0", "0", "0", "0"]]);
    });
}

#[test]
fn ids_of_a_mount_are_mapped() {
    leaves_nothing(|| {
        // A file system whose mounts can be mapped, whatever the host's root is.
        let host = tempfile::tempdir().unwrap();
        let tmpfs = Tmpfs::on(&host.path().join("mapped"));
        fs::write(tmpfs.0.join("file"), "").unwrap();
        std::os::unix::fs::chown(tmpfs.0.join("file"), Some(5), Some(6)).unwrap();
        let one = |outside: u32| json!([{ "containerID": 0, "hostID": outside, "size": 1000 }]);
        let mut mount = bind(&tmpfs.0, "/mapped", &["rbind"]);
        (mount["uidMappings"], mount["gidMappings"]) = (one(3000), one(4000));
        let root = busybox();
        let script = "stat -c '%u %g' /mapped/file; chown 3007:4008 /mapped/file";
        let output = run("binds-ids", root.path(), Runtime::Husk, script, &[mount]);
        assert_eq!(output.text(), "3005 4006\n", "{}", output.errors());
        let metadata = fs::metadata(tmpfs.0.join("file")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (7, 8));
    });
}

#[test]
fn a_file_goes_where_a_link_of_the_image_points() {
    leaves_nothing(|| {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("resolv"), "nameserver 192.0.2.1\n").unwrap();
        let mut said = Vec::new();
        for (id, runtime) in [("link-runc", Runtime::Runc), ("link-husk", Runtime::Husk)] {
            let root = busybox();
            symlink("../run/systemd/resolve/stub-resolv.conf", root.path().join("etc/resolv.conf")).unwrap();
            symlink("../../../../../../../outside", root.path().join("etc/up")).unwrap();
            let mounts = [
                bind(&host.path().join("resolv"), "/etc/resolv.conf", &["rbind"]),
                bind(host.path(), "/etc/up/dir", &["rbind"]),
            ];
            let output =
                run(id, root.path(), runtime, "cat /etc/resolv.conf; ls -d /outside/dir; ls /outside/dir", &mounts);
            assert_eq!(output.status, 0, "{id}: {}", output.errors());
            said.push(output.text());
            // Where its target would be with a link that leads out.
            assert!(!Path::new("/outside").exists());
        }
        assert_eq!(said[1], said[0]);
        assert_eq!(said[1], "nameserver 192.0.2.1\n/outside/dir\nresolv\n");
    });
}

/// A directory as Kubernetes writes ConfigMaps: what is swapped is one link, at once.
fn swap(directory: &Path, version: &str) {
    fs::create_dir(directory.join(version)).unwrap();
    fs::write(directory.join(version).join("key"), version).unwrap();
    symlink(version, directory.join("..new")).unwrap();
    fs::rename(directory.join("..new"), directory.join("..data")).unwrap();
}

#[test]
fn what_the_host_changes_is_seen_by_a_running_container() {
    leaves_nothing(|| {
        let (root, host) = (busybox(), tempfile::tempdir().unwrap());
        swap(host.path(), "one");
        symlink("..data/key", host.path().join("key")).unwrap();
        fs::write(host.path().join("log"), "begin\n").unwrap();
        let mount = format!("type=bind,src={},dst=/config,options=rbind:ro", host.path().display());
        let container = Detached::start("binds-swap", root.path(), &["--mount", &mount], &["sleep", "1000"]);
        assert_eq!(container.exec("before", &["cat", "/config/key"]).text(), "one");
        // It waits for what comes, and reads what is added behind what it has read already.
        // (busybox' `cat` would use sendfile(2), for which the guest's kernel does not ask how long a file is.)
        let follow = "exec 3</config/log; read line <&3; echo $line; touch /begun; \
                      while [ \"$(cat /config/key)\" != two ]; do sleep 0.1; done; echo swapped; touch /swapped; \
                      until read line <&3; do sleep 0.1; done; echo $line";
        let follower = container.start_exec("follow", &[], &["sh", "-c", follow]).has_made(&root.path().join("begun"));
        swap(host.path(), "two");
        let follower = follower.has_made(&root.path().join("swapped"));
        let mut log = fs::OpenOptions::new().append(true).open(host.path().join("log")).unwrap();
        log.write_all(b"added\n").unwrap();
        let output = follower.wait();
        assert_eq!(output.text(), "begin\nswapped\nadded\n", "{}", output.errors());
    });
}

#[test]
fn sources_that_cannot_be_are_named() {
    leaves_nothing(|| {
        let (root, host): (_, TempDir) = (busybox(), tempfile::tempdir().unwrap());
        let socket = host.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        for (id, source, words) in [
            ("none", Path::new("/no/such"), "cannot open its source /no/such: No such file or directory"),
            ("socket", &*socket, "is a socket"),
            ("device", Path::new("/dev/null"), "is a device of the host"),
            ("proc", Path::new("/proc"), "shows the host's kernel"),
            ("sys", Path::new("/sys/fs/cgroup"), "shows the host's kernel"),
        ] {
            let output =
                run(&format!("binds-{id}"), root.path(), Runtime::Husk, "true", &[bind(source, "/x", &["rbind"])]);
            refused(&output, &["husk: mounts: mounts[7], at /x: ", words]);
        }
        // A file of the image where a directory is to be.
        let output =
            run("binds-kind", root.path(), Runtime::Husk, "true", &[bind(host.path(), "/etc/passwd/x", &["rbind"])]);
        refused(&output, &["mounts[7]: cannot mount", "/etc/passwd/x", "Not a directory"]);
        let many: Vec<_> = (0..1025).map(|n| bind(host.path(), &format!("/m/{n}"), &["rbind"])).collect();
        let output = run("binds-many", root.path(), Runtime::Husk, "true", &many);
        refused(&output, &["1025 bind mounts", "1024"]);
    });
}

#[test]
fn two_hundred_mounts_are_two_hundred_mounts() {
    leaves_nothing(|| {
        let host = tempfile::tempdir().unwrap();
        let mounts: Vec<_> = (0..200)
            .map(|number| {
                let file = host.path().join(number.to_string());
                fs::write(&file, format!("{number}\n")).unwrap();
                bind(&file, &format!("/files/{number}"), &["rbind", "ro"])
            })
            .collect();
        let said = alike("ls /files | wc -l; cat /files/0 /files/199; grep -c ' /files/' /proc/mounts", &mounts);
        assert_eq!(said, "200\n0\n199\n200\n");
    });
}
