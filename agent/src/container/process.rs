//! The program: who runs it, with which rights, and where it is.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, configure_capability_in_ambient_set, remove_capability_from_bounding_set,
    set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use super::below::directory_below;
use super::process_plan::{Limit, ProcessPlan, all_capabilities};
use super::seccomp::Filter;
use crate::stdio::Stdio;

/// What `execve` gets.
#[derive(Debug)]
pub(super) struct Program {
    path: CString,
    args: Strings,
    env: Strings,
}

/// Strings as `execve` takes them. Made early: memory that is asked for behind a filter may be refused.
#[derive(Debug)]
struct Strings {
    pointers: Vec<*const libc::c_char>,
    /// What they point to.
    _strings: Vec<CString>,
}

impl Strings {
    /// # Errors
    /// One has a zero byte.
    fn of(strings: &[String]) -> Result<Self, String> {
        let c = |text: &String| CString::new(text.as_str()).map_err(|_| format!("{text:?}: contains a zero byte"));
        let strings = strings.iter().map(c).collect::<Result<Vec<_>, _>>()?;
        let pointers = strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(Self { pointers, _strings: strings })
    }
}

impl Program {
    /// Finds the program in the container, which is the root already, and enters its directory.
    ///
    /// # Errors
    /// In runc's words.
    pub(super) fn find(plan: &ProcessPlan) -> Result<Self, String> {
        let process = plan.process();
        let cwd = process.cwd();
        rustix::process::chdir(cwd)
            .map_err(|cause| format!("chdir to cwd (\"{}\"): {}", cwd.display(), plain(&cause.into())))?;
        if !is_inside() {
            return Err(format!("chdir to cwd (\"{}\"): it is outside of the container", cwd.display()));
        }
        let mut env: Vec<String> = process.env().clone().unwrap_or_default();
        if !env.iter().any(|variable| variable.starts_with("HOME=")) {
            env.push(format!("HOME={}", home_of(process.user().uid())));
        }
        let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default().to_owned();
        let name = plan.args().first().map(String::as_str).unwrap_or_default();
        let found = look_up(name, &path)?;
        Self::at(&found, plan.args(), &env)
    }

    /// The program at `path`.
    ///
    /// # Errors
    /// A string has a zero byte.
    pub(super) fn at(path: &Path, args: &[String], env: &[String]) -> Result<Self, String> {
        let path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| format!("{}: contains a zero byte", path.display()))?;
        Ok(Self { path, args: Strings::of(args)?, env: Strings::of(env)? })
    }

    /// Becomes the program; returns only with the reason why not.
    pub(super) fn execute(&self) -> String {
        let (args, env) = (self.args.pointers.as_ptr(), self.env.pointers.as_ptr());
        // SAFETY: all strings are terminated and live until after the call, and both arrays end with a null pointer.
        unsafe { libc::execve(self.path.as_ptr(), args, env) };
        format!("exec {}: {}", self.path.to_string_lossy(), plain(&io::Error::last_os_error()))
    }
}

/// Whether the working directory is below the root. A link of /proc leads to directories that no path leads to (CVE-2024-21626):
/// with the guest's processes in sight, to the agent's own, which is reached before the rights for that are given up.
fn is_inside() -> bool {
    // The kernel's answer begins with "(unreachable)" then (getcwd(2), "C library/kernel differences").
    rustix::process::getcwd(Vec::new()).is_ok_and(|path| path.to_bytes().starts_with(b"/"))
}

/// An error as Go says it: what people know from runc.
fn plain(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        Some(libc::ENOTDIR) => "not a directory".to_owned(),
        Some(libc::EISDIR) => "is a directory".to_owned(),
        Some(libc::E2BIG) => "argument list too long".to_owned(),
        _ => cause.to_string(),
    }
}

/// Go's `exec.LookPath`: a name with a slash is a path, another is looked for in `path`.
fn look_up(name: &str, path: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => Ok(PathBuf::from(name)),
            Err(cause) if cause.raw_os_error() == Some(libc::EACCES) => {
                Err(format!("exec: {name:?}: permission denied"))
            }
            Err(cause) => Err(format!("exec: {name:?}: stat {name}: {}", plain(&cause))),
        };
    }
    for directory in path.split(':') {
        // An empty part means the working directory.
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(name);
        if !name.is_empty() && executable(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(format!("exec: {name:?}: executable file not found in $PATH"))
}

/// A file that somebody may execute.
fn executable(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() || metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

/// The home directory of `uid` in the container's `/etc/passwd`; `/` for one who is not there.
fn home_of(uid: u32) -> String {
    /// A larger one is no list of users.
    const LARGEST: u64 = 4 << 20;
    let mut passwd = String::new();
    // The image's, or somebody's inside: it may be a fifo, whose open waits.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open("/etc/passwd", flags, Mode::empty()).map(fs::File::from)
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        // What was read until an error is looked at.
        let _ = file.take(LARGEST).read_to_string(&mut passwd);
    }
    home_in(&passwd, uid).unwrap_or_else(|| "/".to_owned())
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let found = fields.next()?.parse() == Ok(uid);
        let home = fields.nth(2)?;
        (found && !home.is_empty()).then(|| home.to_owned())
    })
}

/// Makes the working directory, if it is missing, as runc does for a container's init.
///
/// # Errors
/// In runc's words.
pub(super) fn make_working_directory(plan: &ProcessPlan) -> Result<(), String> {
    let cwd = plan.process().cwd();
    let attempt = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty())?;
        // No link of /proc's is followed: it would be made where that leads, with the agent's rights.
        directory_below(&root, cwd).map(drop)
    };
    attempt().map_err(|cause: io::Error| format!("mkdir {}: {}", cwd.display(), plain(&cause)))
}

/// Sets the limits of setrlimit(2) of a process, 0: this one. Those of a user namespace cannot raise any.
///
/// # Errors
/// The limit that the kernel refuses.
pub(super) fn set_limits(pid: u32, plan: &ProcessPlan) -> Result<(), String> {
    // The agent's own is not a container's.
    crate::boot::restore_files(pid).map_err(|cause| format!("cannot set the limit of open files: {cause}"))?;
    for Limit { name, resource, soft, hard } in plan.limits() {
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        // SAFETY: the limit is valid, the kernel only reads it, and nothing wants the old one.
        if unsafe { libc::prlimit(pid.cast_signed(), resource, &raw const limit, std::ptr::null_mut()) } < 0 {
            let cause = io::Error::last_os_error();
            return Err(format!("cannot set process.rlimits {name} to {soft} and {hard}: {cause}"));
        }
    }
    Ok(())
}

/// Sets how likely the kernel kills a process (`self`: this one) when memory runs out. Those of a user namespace cannot lower theirs.
///
/// # Errors
/// The kernel's answer.
pub(super) fn set_oom_score(process: &str, plan: &ProcessPlan) -> Result<(), String> {
    let Some(adjust) = plan.process().oom_score_adj() else { return Ok(()) };
    fs::write(format!("/proc/{process}/oom_score_adj"), adjust.to_string())
        .map_err(|cause| format!("cannot set oom_score_adj to {adjust}: {cause}"))
}

/// Gives the streams to the container's user, whose id in the guest this is, and who may open them by name
/// (`/dev/stdout`), as runc does.
///
/// # Errors
/// The kernel's answer.
pub(super) fn give_stdio(stdio: &Stdio, user: u32) -> io::Result<()> {
    for fd in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        // Not /dev/null, which is everybody's.
        if FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Fifo {
            rustix::fs::fchown(fd, Some(Uid::from_raw(user)), None)?;
        }
    }
    Ok(())
}

/// Becomes this user, with these groups.
///
/// # Errors
/// The kernel's answer.
pub(super) fn become_user(user: u32, group: u32, groups: &[u32]) -> Result<(), String> {
    // SAFETY: the array is as long as said; the other calls touch no memory.
    let done = unsafe {
        libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0
            && libc::syscall(libc::SYS_setresgid, group, group, group) == 0
            && libc::syscall(libc::SYS_setresuid, user, user, user) == 0
    };
    if done {
        return Ok(());
    }
    Err(format!("cannot become user {user}, group {group}: {}", io::Error::last_os_error()))
}

/// What all processes of a container have, whatever the document says of each.
#[derive(Debug, Default)]
pub(super) struct Common {
    /// `linux.seccomp`.
    pub(super) filter: Option<Filter>,
    /// `linux.personality`, for personality(2).
    pub(super) personality: Option<libc::c_ulong>,
}

/// Takes the user, the groups, the capabilities and the filter of the document. The process has one thread, so the calls for one
/// thread are enough. Last of all before the program: nothing but its execution has to pass the filter, and without
/// `no_new_privs` the call that lets go of the privilege to install it.
///
/// # Errors
/// The step and the kernel's answer.
pub(super) fn take_identity(plan: &ProcessPlan, common: &Common) -> Result<(), String> {
    fn step(what: &str) -> impl Fn(rustix::io::Errno) -> String {
        move |cause| format!("cannot {what}: {cause}")
    }
    let process = plan.process();
    let (user, capabilities) = (process.user(), plan.capabilities());
    if let Some(personality) = common.personality {
        // SAFETY: touches no memory.
        if unsafe { libc::personality(personality) } < 0 {
            return Err(format!("cannot set the personality: {}", io::Error::last_os_error()));
        }
    }
    for capability in all_capabilities().filter(|one| !capabilities.bounding.contains(*one)) {
        match remove_capability_from_bounding_set(capability) {
            // One that this kernel does not know.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(cause) => return Err(step("limit the capabilities")(cause)),
        }
    }
    set_keep_capabilities(true).map_err(step("keep the capabilities"))?;
    become_user(user.uid(), user.gid(), user.additional_gids().as_deref().unwrap_or_default())?;
    let effective = capabilities.effective.intersection(capabilities.permitted);
    let sets = CapabilitySets { effective, permitted: capabilities.permitted, inheritable: capabilities.inheritable };
    // seccomp(2) takes one of the two.
    let privileged = common.filter.is_some() && process.no_new_privileges() != Some(true);
    let more = if privileged { CapabilitySet::SYS_ADMIN } else { CapabilitySet::empty() };
    let until = CapabilitySets { effective: effective | more, permitted: sets.permitted | more, ..sets };
    set_capabilities(None, until).map_err(step("set the capabilities"))?;
    for capability in all_capabilities().filter(|one| capabilities.ambient.contains(*one)) {
        configure_capability_in_ambient_set(capability, true).map_err(step("set the ambient capabilities"))?;
    }
    if process.no_new_privileges() == Some(true) {
        set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    }
    rustix::process::umask(Mode::from_raw_mode(user.umask().unwrap_or(0o022)));
    if let Some(filter) = &common.filter {
        filter.install()?;
    }
    if privileged {
        set_capabilities(None, sets).map_err(step("set the capabilities behind the filter"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_as_runc_finds_them() {
        let base = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = base.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (program, text) = (file("program", 0o755), file("text", 0o644));
        let directory = base.path().to_str().unwrap();
        assert_eq!(look_up(&program, "").unwrap(), Path::new(&program));
        assert_eq!(look_up("program", &format!("/nowhere:{directory}")).unwrap(), Path::new(&program));
        assert_eq!(look_up("nosuch", directory).unwrap_err(), "exec: \"nosuch\": executable file not found in $PATH");
        assert_eq!(look_up("text", directory).unwrap_err(), "exec: \"text\": executable file not found in $PATH");
        assert_eq!(look_up("", directory).unwrap_err(), "exec: \"\": executable file not found in $PATH");
        assert_eq!(look_up(&text, "").unwrap_err(), format!("exec: {text:?}: permission denied"));
        assert_eq!(
            look_up("/no/such", "").unwrap_err(),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
    }

    #[test]
    fn homes_come_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken\nu:x:7:7::/home/u:/bin/sh\nempty:x:8:8:::/bin/sh\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 7).as_deref(), Some("/home/u"));
        assert_eq!((home_in(passwd, 8), home_in(passwd, 9)), (None, None));
    }
}
