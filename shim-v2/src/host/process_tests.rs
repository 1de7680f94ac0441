use super::*;
use crate::host::program::{Network, Program};

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap()
}

fn shell(line: &str) -> Child {
    let program = Program {
        path: Path::new("/bin/sh"),
        arguments: &["-c", line],
        stderr: None,
        descriptor: None,
        network: Network::Host,
        cgroup: None,
    };
    program.start().unwrap()
}

#[test]
fn a_child_ends_and_says_how() {
    runtime().block_on(async {
        let child = shell("exit 7");
        assert_eq!(child.finished().await.unwrap(), How::Exited(7));
        assert!(!child.is_reaped(), "it is only looked at");
        assert_eq!(child.ended().await.unwrap(), How::Exited(7));
        assert_eq!(child.ended().await.unwrap().to_string(), "exit status 7");
        let child = shell("exec sleep 1000");
        child.kill();
        assert_eq!(child.ended().await.unwrap().to_string(), "signal 9");
    });
}

#[test]
fn another_process_of_the_same_number_is_left_alone() {
    let child = shell("exec sleep 1000");
    let identity = child.identity().unwrap();
    Identity { started: identity.started + 1, ..identity }.kill(10);
    assert!(started(child.pid()).is_ok());
    identity.kill(5000);
    runtime().block_on(async { assert_eq!(child.ended().await.unwrap().to_string(), "signal 9") });
}

#[test]
fn descriptors_have_their_numbers_whatever_theirs_are_here() {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (read, write) = pipe();
    // What is 3, 4 and 5 in the child is beside, in the other order: none of them may get into another's way.
    let pipes: Vec<_> = (0..3).map(|_| pipe()).collect();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "for fd in 3 4 5; do readlink /proc/$$/fd/$fd; done >&6"]);
    let wanted = [pipes[2].1.as_fd(), pipes[1].0.as_fd(), pipes[0].1.as_fd(), write.as_fd()];
    let names = wanted[..3].iter().map(|fd| {
        let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
        format!("{}\n", name.display())
    });
    let names: String = names.collect();
    let child = Child::spawn_foreign(command, Path::new("/"), &wanted).unwrap();
    assert_eq!(runtime().block_on(child.ended()).unwrap(), How::Exited(0));
    let mut said = [0; 1024];
    let count = rustix::io::read(&read, &mut said).unwrap();
    assert_eq!(std::str::from_utf8(&said[..count]).unwrap(), names);
    // The way by which a failed `execve` is told is not among them.
    let failed = Child::spawn_foreign(Command::new("/nonexistent/program"), Path::new("/"), &wanted[..3]);
    assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_foreign_program_is_in_the_mount_namespace_that_the_shim_has_left() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    namespace::keep_mounts().unwrap();
    let kept = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().canonicalize().unwrap();
    // The namespace is this thread's alone.
    let thread = std::thread::spawn(move || {
        // SAFETY: no descriptor table is unshared.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "readlink /proc/self/ns/mnt >mounts; pwd >pwd"]);
        let child = Child::spawn_foreign(command, &path, &[]).unwrap();
        assert_eq!(runtime().block_on(child.ended()).unwrap(), How::Exited(0));
        std::fs::read_link("/proc/thread-self/ns/mnt").unwrap()
    });
    assert_ne!(thread.join().unwrap(), kept, "the thread has left it");
    let text = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    assert_eq!(Path::new(text("mounts").trim()), kept);
    assert_eq!(Path::new(text("pwd").trim()), directory.path().canonicalize().unwrap());
}

#[test]
fn a_child_that_is_dropped_leaves_no_zombie() {
    runtime().block_on(async {
        let child = shell("exec sleep 1000");
        let identity = child.identity().unwrap();
        drop(child);
        while identity.is_alive() {
            tokio::task::yield_now().await;
        }
    });
}
