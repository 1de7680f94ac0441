//! Containers with a user namespace: their ids inside, and what the host sees of them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use husk_tests::ctr::{Detached, Run, Runtime, ctr, must};
use husk_tests::host::{generation, leaves_nothing};
use husk_tests::pty::Session;
use husk_tests::rootfs;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::document::document;
use crate::{busybox, refused};

/// The host's ids of the containers' user and group 0.
const USER: u32 = 100_000;
const GROUP: u32 = 200_000;

/// Adds a user namespace to a document.
pub(crate) fn mapped(document: &mut Value) {
    let linux = &mut document["linux"];
    linux["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
    linux["uidMappings"] = json!([{ "containerID": 0, "hostID": USER, "size": 65536 }]);
    linux["gidMappings"] = json!([{ "containerID": 0, "hostID": GROUP, "size": 65536 }]);
}

pub(crate) fn give(path: &Path) {
    lchown(path, Some(USER), Some(GROUP)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path()));
    }
}

/// A root that belongs to the container's user.
pub(crate) fn root() -> TempDir {
    let root = busybox();
    give(root.path());
    root
}

/// Imports busybox as an image, and unpacks it for containers with these flags, so that no case counts its snapshots, or
/// the database that containerd opens for them, as its own.
fn image(name: &str, flags: &[&str]) {
    rootfs::import(name, busybox().path());
    let output = Run::of_image("unpack", name).runtime(Runtime::Runc).flags(flags).run(&["true"]);
    assert_eq!(output.status, 0, "{}", output.errors());
}

#[test]
fn a_container_has_the_same_ids_and_rights_as_with_runc() {
    leaves_nothing(|| {
        let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; \
            grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs)' /proc/self/status; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; \
            hostname; cat /proc/sys/kernel/shm_rmid_forced; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; \
            echo 1 2>&1 >/proc/sys/kernel/panic && echo written; cat /etc/secret | wc -c; touch /x 2>&1; \
            echo text >/dev/null && echo null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; \
            ls /dev | grep -v core; stat -c '%F %t %T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; \
            echo out >/dev/stdout; ls -d /sys/class/net/lo /sys/fs; touch /sys/kernel/mm/new 2>&1; \
            mknod /tmp/node c 1 3 2>&1; mkdir /run/mine && mount -t tmpfs none /run/mine && echo mounted; \
            cut -d' ' -f2,3 /proc/mounts | grep -E ' (proc|devpts|mqueue|sysfs)$|/shm |/run '";
        let with = |id: &str, runtime: Runtime, user: u32| {
            let root = root();
            fs::write(root.path().join("etc/secret"), "secret\n").unwrap();
            let file = document(root.path(), script, |document| {
                mapped(document);
                document["root"]["readonly"] = true.into();
                document["hostname"] = "named".into();
                document["process"]["user"] = json!({ "uid": user, "gid": user, "additionalGids": [7] });
                // Below the shim's, which nothing in a user namespace can have.
                document["process"]["oomScoreAdj"] = (-500).into();
                document["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 5000, "hard": 600_000 }]);
                if user == 0 {
                    let some = json!(["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_MKNOD"]);
                    document["process"]["capabilities"] =
                        json!({ "bounding": some, "permitted": some, "effective": some });
                }
                let linux = &mut document["linux"];
                linux["sysctl"] = json!({ "kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "77" });
                linux["maskedPaths"] = json!(["/etc/secret"]);
                linux["readonlyPaths"] = json!(["/proc/sys"]);
                linux["cgroupsPath"] = format!("/default/{id}").into();
            });
            let output =
                ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", file.path().to_str().unwrap(), id]);
            assert_eq!(output.status, 0, "{id}: {}{}", output.text(), output.errors());
            output.text()
        };
        for user in [0, 34] {
            let (mut husk, runc) = (with("ns-husk", Runtime::Husk, user), with("ns-runc", Runtime::Runc, user));
            if generation() == "1.6" {
                // Its shim for runc does not give the streams to the container's user.
                husk = husk.replacen("\nout\n", "\n", 1);
            }
            assert_eq!(husk, runc);
            assert!(
                husk.starts_with(&format!("{user}\n{user}\n")) && husk.contains("\n-500\n5000\n600000\n"),
                "{husk}"
            );
            assert!(!husk.contains("written"), "{husk}");
            assert_eq!(husk.contains("\nmounted\n"), user == 0, "{husk}");
        }
    });
}

#[test]
fn the_host_sees_the_mapped_ids() {
    leaves_nothing(|| {
        let root = root();
        // Nobody else has to enter it.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let script = "echo text >/tmp/made; chown 5:6 /tmp/made; chmod 4755 /tmp/made; mkdir /tmp/deep; stat -c '%u:%g %a' /tmp/made /tmp/deep";
        let file = document(root.path(), script, mapped);
        let config = file.path().to_str().unwrap();
        let output = ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "owner"]);
        assert_eq!(output.text(), "5:6 4755\n0:0 755\n", "{}", output.errors());
        let owner = |name: &str| fs::metadata(root.path().join("tmp").join(name)).map(|data| (data.uid(), data.gid()));
        assert_eq!(owner("made").unwrap(), (USER + 5, GROUP + 6));
        assert_eq!(owner("deep").unwrap(), (USER, GROUP));
        // Files of the host's users are nobody's in there.
        lchown(root.path().join("tmp/made"), Some(0), Some(0)).unwrap();
        fs::set_permissions(root.path().join("tmp/made"), fs::Permissions::from_mode(0o600)).unwrap();
        let file =
            document(root.path(), "stat -c %u:%g /tmp/made; cat /tmp/made || chown 0 /tmp/made || echo no", mapped);
        let config = file.path().to_str().unwrap();
        let output = ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "nobody"]);
        assert_eq!(output.text(), "65534:65534\nno\n", "{}", output.errors());
    });
}

#[test]
fn an_exec_and_a_terminal_are_in_the_namespace_too() {
    let name = "docker.io/husk/userns:1";
    let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
    image(name, &flags);
    leaves_nothing(|| {
        let id = "joined";
        let container = Detached::of_image(id, name, &flags, &["/bin/sleep", "100000"]);
        let script = "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; ulimit -n; echo out >/dev/stdout; touch /tmp/exec; \
            stat -c %u:%g /tmp/exec; mount -t tmpfs none /tmp 2>&1; echo 1 2>&1 >/proc/sys/kernel/panic";
        let exec = container.exec("one", &["/bin/sh", "-c", &format!("{script}; readlink /proc/1/ns/user")]);
        let text = exec.text();
        let lines: Vec<&str> = text.lines().collect();
        let words: Vec<&str> = lines[..2].iter().flat_map(|line| line.split_whitespace()).collect();
        assert_eq!(words, ["0", "0", "100000", "65536"], "{text}{}", exec.errors());
        assert_eq!(lines.last(), lines.get(2), "{text}");
        assert!(text.contains("\nout\n0:0\n") && text.contains("denied"), "{text}{}", exec.errors());
        // Another user, and one that the namespace does not have.
        let user =
            container.start_exec("two", &["--user", "34:34"], &["/bin/sh", "-c", "id -u; id -g; echo >/dev/stdout"]);
        let user = user.wait();
        assert_eq!((user.status, user.text().as_str()), (0, "34\n34\n\n"), "{}", user.errors());
        let none = container.start_exec("three", &["--user", "70000:0"], &["/bin/true"]).wait();
        refused(&none, &["process.user.uid 70000", "not in the mappings"]);
        let words = ["ctr", "task", "exec", "-t", "--exec-id", "shell", id, "/bin/sh", "-i"];
        let mut session = Session::start(&words, 80, 24);
        // Its size comes after its start.
        session.types("PS1='re''ady> '\n");
        session.shows("ready> ");
        session.types("stat -c 'is %u' $(tty); stty size\n");
        session.shows("is 0");
        session.shows("24 80");
        session.types("exit 6\n");
        assert_eq!(session.ends().0, 6);
        drop(container);
        let words = ["ctr", "run", "--rm", "-t", "--runtime", Runtime::Husk.name()];
        let words =
            [&words[..], &flags, &[name, "console", "/bin/sh", "-c", "stat -c 'is %u' /dev/console; tty; exit 7"]]
                .concat();
        let mut session = Session::start(&words, 80, 24);
        session.shows("is 0");
        session.shows("/dev/pts/0");
        assert_eq!(session.ends().0, 7);
    });
    must(&["image", "rm", "--sync", name]);
}

#[test]
fn a_snapshot_is_mapped_when_it_is_mounted() {
    if generation() == "1.6" {
        println!(
            "    with containerd 1.6 runc cannot make its mount points in a snapshot that is mapped: nothing to compare"
        );
        return;
    }
    let name = "docker.io/husk/mapped:1";
    let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels"];
    image(name, &flags);
    let copies = || must(&["snapshots", "ls"]).matches("remap").count();
    let before = copies();
    leaves_nothing(|| {
        let script = "id -u; stat -c %u:%g / /bin/busybox; echo more >>/etc/passwd; touch /made; stat -c %u:%g /made /etc/passwd";
        let with = |id: &str, runtime| {
            let output = Run::of_image(id, name).runtime(runtime).flags(&flags).run(&["/bin/sh", "-c", script]);
            assert_eq!(output.status, 0, "{id}: {}{}", output.text(), output.errors());
            output.text()
        };
        let husk = with("map-husk", Runtime::Husk);
        assert_eq!(husk, with("map-runc", Runtime::Runc));
        assert_eq!(husk, "0\n0:0\n0:0\n0:0\n0:0\n");
    });
    // containerd has not copied it with other owners.
    assert_eq!(copies(), before);
    must(&["image", "rm", "--sync", name]);
}

#[test]
fn mappings_that_cannot_be_are_refused() {
    leaves_nothing(|| {
        let root = root();
        let tried = |words: &[&str], change: &dyn Fn(&mut Value)| {
            let file = document(root.path(), "true", |document| {
                mapped(document);
                change(document);
            });
            let config = file.path().to_str().unwrap();
            refused(&ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "wrong"]), words);
        };
        tried(&["linux.gidMappings"], &|document| document["linux"]["gidMappings"] = json!([]));
        tried(&["overlap", "10:70000:5"], &|document| {
            let mappings = document["linux"]["uidMappings"].as_array_mut().unwrap();
            mappings.push(json!({ "containerID": 10, "hostID": 70000, "size": 5 }));
        });
        tried(&["process.user.uid 70000", "mappings"], &|document| document["process"]["user"]["uid"] = 70000.into());
        tried(&["a namespace of the host does not exist"], &|document| {
            document["linux"]["namespaces"].as_array_mut().unwrap().last_mut().unwrap()["path"] =
                "/proc/1/ns/user".into();
        });
        // And one whose root its user cannot enter.
        let closed = busybox();
        fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let file = document(closed.path(), "true", mapped);
        let config = file.path().to_str().unwrap();
        let output = ctr(&["run", "--rm", "--runtime", Runtime::Husk.name(), "--config", config, "closed"]);
        refused(&output, &["Permission denied"]);
    });
}

#[test]
fn bind_mounts_have_the_mapped_ids() {
    leaves_nothing(|| {
        let host = tempfile::tempdir().unwrap();
        let mine = host.path().join("mine");
        fs::create_dir(&mine).unwrap();
        fs::write(mine.join("file"), "of the container\n").unwrap();
        fs::write(mine.join("others"), "of the host\n").unwrap();
        fs::set_permissions(mine.join("others"), fs::Permissions::from_mode(0o600)).unwrap();
        lchown(&mine, Some(USER), Some(GROUP)).unwrap();
        lchown(mine.join("file"), Some(USER + 7), Some(GROUP + 8)).unwrap();
        fs::write(host.path().join("conf"), "a file\n").unwrap();
        let script = "stat -c '%u %g %a' /mine /mine/file /mine/others /conf; cat /mine/file /conf; cat /mine/others 2>&1; \
            echo more >>/mine/file && chown 9:9 /mine/file && echo mine; chown 9:9 /mine/others 2>&1; rm /mine/others && echo gone; \
            touch /mine/new; chmod 4755 /mine/new; touch /read-only/new 2>&1; echo >/conf 2>&1; \
            cut -d' ' -f2,4 /proc/mounts | grep -E '^/(mine|read-only|conf) ' | sed 's/,.*//'";
        let with = |id: &str, runtime: Runtime| {
            let root = root();
            let file = document(root.path(), script, |document| {
                mapped(document);
                document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
                document["mounts"].as_array_mut().unwrap().extend([
                    json!({ "type": "bind", "source": mine, "destination": "/mine", "options": ["rbind", "rw"] }),
                    json!({ "type": "bind", "source": mine, "destination": "/read-only", "options": ["rbind", "ro"] }),
                    json!({ "type": "bind", "source": host.path().join("conf"), "destination": "/conf", "options": ["bind", "ro"] }),
                ]);
            });
            let output =
                ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", file.path().to_str().unwrap(), id]);
            assert_eq!(output.status, 0, "{id}: {}{}", output.text(), output.errors());
            let left = |name: &str| {
                let meta = fs::metadata(mine.join(name)).unwrap();
                (meta.uid(), meta.gid(), meta.mode() & 0o7777)
            };
            let host = (left("file"), left("new"), mine.join("others").exists());
            fs::remove_file(mine.join("new")).unwrap();
            lchown(mine.join("file"), Some(USER + 7), Some(GROUP + 8)).unwrap();
            fs::write(mine.join("file"), "of the container\n").unwrap();
            fs::write(mine.join("others"), "of the host\n").unwrap();
            fs::set_permissions(mine.join("others"), fs::Permissions::from_mode(0o600)).unwrap();
            (output.text(), host)
        };
        let runc = with("mapped-runc", Runtime::Runc);
        assert_eq!(with("mapped-husk", Runtime::Husk), runc);
        let (text, ((user, group, _), (_, _, mode), others)) = runc;
        assert_eq!((user, group, mode, others), (USER + 9, GROUP + 9, 0o4755, false));
        assert!(text.starts_with("0 0 755\n7 8 644\n65534 65534 600\n"), "{text}");
        assert!(text.contains("mine\n") && text.contains("Read-only file system"), "{text}");
    });
}
