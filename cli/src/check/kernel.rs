//! What the shim asks of the host's kernel, tried: what it is for stands beside each.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, OpenTreeFlags, fsopen, open_tree};
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{AS_ROOT, Point};
use crate::host::Host;

/// What was tried, and the kernel's answer.
type Attempt = Result<(), Errno>;

/// Bare metal, or a machine in a machine.
pub fn virtualisation(host: &Host) -> Point {
    let name = "virtualisation";
    let read = |path: &str| fs::read_to_string(host.sys.join(path)).map(|text| text.trim().to_owned()).ok();
    let cpuinfo = fs::read_to_string(host.proc.join("cpuinfo")).unwrap_or_default();
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let below = flags.split_whitespace().any(|flag| flag == "hypervisor");
    let maker = ["class/dmi/id/sys_vendor", "class/dmi/id/product_name"].map(read);
    let maker: Vec<String> = maker.into_iter().flatten().filter(|word| !word.is_empty()).collect();
    let maker = if maker.is_empty() { String::new() } else { format!(" ({})", maker.join(" ")) };
    let place = if below {
        format!("this host is itself a virtual machine{maker}: pods work nested, and start and do I/O more slowly")
    } else {
        format!("this host is no virtual machine{maker}")
    };
    let nested = ["kvm_intel", "kvm_amd"].into_iter().find_map(|module| {
        let on = read(&format!("module/{module}/parameters/nested"))?;
        let on = matches!(on.as_str(), "1" | "Y" | "y");
        Some(format!("; {module} {} machines inside its guests", if on { "allows" } else { "does not allow" }))
    });
    Point::note(name, format!("{place}{}", nested.unwrap_or_default()))
}

/// cgroup v2: the pod's VMM and stubs are in a group, which one write ends.
pub fn cgroup(host: &Host) -> Point {
    let name = "cgroup";
    let root = host.sys.join("fs/cgroup");
    let shown = root.display();
    let mounts = match fs::read_to_string(host.proc.join("self/mountinfo")) {
        Ok(mounts) => mounts,
        Err(cause) => return Point::unknown(name, format!("cannot read the table of mounts: {cause}"), "mount /proc"),
    };
    let to_v2 = "boot with cgroup v2: systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
    match type_of_mount(&mounts, &root).as_deref() {
        Some("cgroup2") => {}
        Some(_) => {
            let what = format!("cgroup v1 is mounted at {shown} (or v1 and v2 side by side), and husk needs v2");
            return Point::failed(name, what, to_v2);
        }
        None => {
            let what = format!("no cgroup is mounted at {shown}, and husk needs v2");
            return Point::failed(name, what, format!("mount it: mount -t cgroup2 cgroup {shown}"));
        }
    }
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let controllers = controllers.trim().to_owned();
    match try_group(&root) {
        Ok(()) => Point::ok(name, format!("v2 at {shown}, groups can be made and killed (controllers: {controllers})")),
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => {
            Point::unknown(name, format!("v2 at {shown}; only root may try to make a group"), AS_ROOT)
        }
        Err(cause) if cause.kind() == io::ErrorKind::Unsupported => {
            Point::failed(name, format!("v2 at {shown}, but {cause}"), "use Linux 5.14 or newer")
        }
        Err(cause) => Point::failed(
            name,
            format!("v2 at {shown}, but no group can be made there: {cause}"),
            "in a container: give it a writable cgroup namespace, or run containerd on the host",
        ),
    }
}

/// The type of what is mounted at `path`, the topmost (proc_pid_mountinfo(5)).
fn type_of_mount(mounts: &str, path: &Path) -> Option<String> {
    let path = path.to_str()?;
    let line = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(path))?;
    line.split_once(" - ")?.1.split(' ').next().map(str::to_owned)
}

/// Makes a group, looks for what ends it, and removes it.
fn try_group(root: &Path) -> io::Result<()> {
    let path = root.join(format!("husk-check-{}", std::process::id()));
    fs::create_dir(&path)?;
    let missing = ["cgroup.kill", "cgroup.events"].into_iter().find(|file| !path.join(file).exists());
    fs::remove_dir(&path)?;
    missing.map_or(Ok(()), |file| Err(io::Error::new(io::ErrorKind::Unsupported, format!("it has no {file}"))))
}

/// The system calls that came late into Linux or are often forbidden.
pub fn system_calls() -> Vec<Point> {
    let answers = [
        (
            "kernel.mounts",
            "detached mounts without set-user-ID, devices and links (open_tree, mount_setattr)",
            "use Linux 5.14 or newer, and run containerd where it may mount",
            detached_mount(),
        ),
        (
            "kernel.namespaces",
            "a mount namespace for each pod (unshare)",
            "run containerd where it may make namespaces: with CAP_SYS_ADMIN",
            mount_namespace(),
        ),
        ("kernel.pidfd", "processes as descriptors (pidfd_open)", "use Linux 5.4 or newer", process_descriptor()),
    ];
    let points = answers.map(|(name, what, remedy, attempt)| point(name, what, remedy, attempt));
    points.into_iter().chain([overlay(try_overlay())]).collect()
}

fn point(name: &'static str, what: &str, remedy: &str, attempt: Attempt) -> Point {
    match attempt {
        Ok(()) => Point::ok(name, what),
        Err(Errno::PERM | Errno::ACCESS) if !rustix::process::geteuid().is_root() => {
            Point::unknown(name, format!("{what}: only root may try"), AS_ROOT)
        }
        Err(cause) => Point::failed(name, format!("{what}: {cause}"), remedy),
    }
}

/// Roots of images are overlays, unless containerd's snapshotter is another.
fn overlay(attempt: Attempt) -> Point {
    let name = "kernel.overlay";
    match attempt {
        Ok(()) => Point::ok(name, "overlayfs, for the roots of images"),
        Err(Errno::PERM | Errno::ACCESS) => Point::unknown(name, "overlayfs: only root may try", AS_ROOT),
        Err(cause) => {
            let what = format!("overlayfs, which containerd's snapshotter of that name needs: {cause}");
            Point::warning(name, what, "load it (modprobe overlay), or use the snapshotter native")
        }
    }
}

/// A copy of a mount that is in no table and gone with its descriptor, made as restricted as a container's root.
fn detached_mount() -> Attempt {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, "/", flags)?;
    husk_shim::host::mount::restrict(&mount, false)
        .map_err(|cause| cause.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
}

/// In a thread: the namespace is gone with it.
fn mount_namespace() -> Attempt {
    // SAFETY: no descriptor table is unshared; the new thread alone is in the namespace, and does nothing there.
    let thread = std::thread::spawn(|| unsafe { unshare_unsafe(UnshareFlags::NEWNS) });
    thread.join().unwrap_or(Err(Errno::IO))
}

fn process_descriptor() -> Attempt {
    pidfd_open(getpid(), PidfdFlags::empty()).map(drop)
}

/// A context of the file system, which is gone with its descriptor; asking for it loads the module.
fn try_overlay() -> Attempt {
    fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;

    fn host(mounts: &str) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        fs::create_dir_all(host.proc.join("self")).unwrap();
        fs::create_dir_all(host.sys.join("fs/cgroup")).unwrap();
        let mounts = mounts.replace("ROOT", root.path().to_str().unwrap());
        fs::write(host.proc.join("self/mountinfo"), mounts).unwrap();
        (root, host)
    }

    #[test]
    fn cgroup_v1_is_refused() {
        let (_root, v1) = host("24 1 0:22 / ROOT/sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n");
        let point = cgroup(&v1);
        assert_eq!(point.state, State::Failed);
        assert!(point.what.contains("v1") && point.remedy.unwrap().contains("unified_cgroup_hierarchy"));
        let (_root, none) = host("24 1 0:22 / /proc rw - proc proc rw\n");
        assert!(cgroup(&none).what.contains("no cgroup is mounted"));
    }

    #[test]
    fn a_cgroup_that_cannot_be_killed_is_refused() {
        let (_root, host) = host(
            "24 1 0:22 / ROOT/sys/fs/cgroup ro - tmpfs tmpfs ro\n25 1 0:23 / ROOT/sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        );
        let point = cgroup(&host);
        assert_eq!(point.state, State::Failed);
        assert!(point.what.contains("it has no cgroup.kill"), "{point:?}");
        assert_eq!(fs::read_dir(host.sys.join("fs/cgroup")).unwrap().count(), 0);
    }

    #[test]
    fn refusals_are_told_apart() {
        let root = rustix::process::geteuid().is_root();
        let refused = point("kernel.mounts", "mounts", "a remedy", Err(Errno::PERM));
        assert_eq!(refused.state, if root { State::Failed } else { State::Unknown });
        let old = point("kernel.mounts", "mounts", "a remedy", Err(Errno::NOSYS));
        assert_eq!((old.state, old.remedy.as_deref()), (State::Failed, Some("a remedy")));
        assert_eq!(overlay(Err(Errno::NODEV)).state, State::Warning);
    }

    #[test]
    fn a_machine_in_a_machine_is_said() {
        let (_root, host) = host("");
        fs::write(host.proc.join("cpuinfo"), "flags : fpu hypervisor svm\n").unwrap();
        for (file, text) in [("class/dmi/id/sys_vendor", "QEMU\n"), ("module/kvm_amd/parameters/nested", "1\n")] {
            fs::create_dir_all(host.sys.join(file).parent().unwrap()).unwrap();
            fs::write(host.sys.join(file), text).unwrap();
        }
        let point = virtualisation(&host);
        assert_eq!(point.state, State::Note);
        assert!(point.what.contains("itself a virtual machine (QEMU)") && point.what.contains("kvm_amd allows"));
    }
}
