use super::*;
use crate::host::process::How;

use std::os::fd::AsFd;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap()
}

fn program<'a>(path: &'a str, arguments: &'a [&'a str]) -> Program<'a> {
    let path = Path::new(path);
    Program { path, arguments, stderr: None, descriptor: None, network: Network::Host, cgroup: None }
}

/// What a shell says on descriptor 3.
fn said(line: &str, with: impl FnOnce(Program<'_>) -> io::Result<Child>) -> String {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let arguments = ["-c", line];
    let child = with(Program { descriptor: Some(write.as_fd()), ..program("/bin/sh", &arguments) }).unwrap();
    drop(write);
    assert_eq!(runtime().block_on(child.ended()).unwrap(), How::Exited(0));
    io::read_to_string(std::fs::File::from(read)).unwrap()
}

#[test]
fn a_program_has_what_it_is_given_and_nothing_else() {
    let sleeps = program("/bin/sleep", &["1000"]).start().unwrap();
    let of = |name: &str| Path::new("/proc").join(sleeps.pid().to_string()).join(name);
    let links = ["cwd", "fd/0", "fd/1", "fd/2"].map(|name| std::fs::read_link(of(name)).unwrap());
    assert_eq!(links, ["/", "/dev/null", "/dev/null", "/dev/null"].map(std::path::PathBuf::from));
    assert_eq!(std::fs::read(of("environ")).unwrap(), b"");
    assert_eq!(std::fs::read(of("cmdline")).unwrap(), b"/bin/sleep\x001000\0");
    drop(sleeps);
    let masks = said("grep -E 'SigBlk|SigIgn' /proc/self/status >&3", |program| program.start());
    let mask =
        |name: &str| masks.lines().find_map(|line| u64::from_str_radix(line.strip_prefix(name)?.trim(), 16).ok());
    assert_eq!(mask("SigBlk:").unwrap(), 0);
    assert_eq!(mask("SigIgn:").unwrap() & (1 << (libc::SIGPIPE - 1)), 0);
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let child =
        Program { stderr: Some(write.as_fd()), ..program("/bin/sh", &["-c", "echo hello >&2"]) }.start().unwrap();
    drop(write);
    assert_eq!(io::read_to_string(std::fs::File::from(read)).unwrap(), "hello\n");
    runtime().block_on(child.ended()).unwrap();
}

#[test]
fn what_cannot_start_says_why_and_leaves_no_zombie() {
    let failed = program("/nonexistent/program", &[]).start().unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::NotFound);
    let directory = open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let no_namespace = Program { network: Network::At(directory.as_fd()), ..program("/bin/true", &[]) };
    assert_eq!(no_namespace.start().unwrap_err().raw_os_error(), Some(libc::EBADF));
    let no_cgroup = Program { cgroup: Some(directory.as_fd()), ..program("/bin/true", &[]) };
    assert_eq!(no_cgroup.start().unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert!(program("/bin/tr\0ue", &[]).start().is_err());
}

#[test]
fn it_is_born_in_its_cgroup() {
    // Version 2 may be elsewhere than husk needs it.
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts.lines().find(|line| line.starts_with("cgroup2 ")).and_then(|line| line.split(' ').nth(1));
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let path = Path::new(root.unwrap_or_default()).join(own).join(format!("husk-test-{}", std::process::id()));
    if let Err(cause) = std::fs::create_dir(&path) {
        eprintln!("skipped: cannot make {}: {cause}", path.display());
        return;
    }
    let directory = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let line = said("grep ^0:: /proc/self/cgroup >&3", |program| {
        Program { cgroup: Some(directory.as_fd()), ..program }.start()
    });
    let gone = std::fs::remove_dir(&path);
    assert!(line.trim_end().ends_with(path.file_name().unwrap().to_str().unwrap()), "{line}");
    gone.unwrap();
}
