//! containerd: installed, running, and configured so that it finds husk.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::registration::{self, Configuration};
use super::{Point, one_line};
use crate::host::{Host, find_program, split_path};
use crate::process::Answer;

/// Time for a program to say its version.
pub const LIMIT: Duration = Duration::from_secs(10);
/// What the kernel appends to the name of a running program whose file was replaced, as by an upgrade.
const REPLACED: &str = " (deleted)";
/// The oldest that husk is tested with.
const OLDEST: (u32, u32) = (1, 6);

/// What is known of this host's containerd.
pub struct Containerd {
    /// Its process's arguments; none if it does not run.
    arguments: Option<Vec<String>>,
    /// Its program.
    program: Option<PathBuf>,
    /// Where it looks for shims: its PATH, then beside its own program.
    pub path: Vec<PathBuf>,
    /// Whether the PATH is the running one's.
    pub path_is_known: bool,
}

impl Containerd {
    /// Looks for the process, else for the program.
    pub fn find(host: &Host) -> Self {
        let running = process(&host.proc);
        let entry = |pid: u32, file: &str| host.proc.join(pid.to_string()).join(file);
        let arguments = running.and_then(|pid| fs::read(entry(pid, "cmdline")).ok());
        let environment = running.and_then(|pid| fs::read(entry(pid, "environ")).ok());
        let path = environment.as_deref().and_then(|environment| {
            strings(environment).into_iter().find_map(|variable| variable.strip_prefix("PATH=").map(split_path))
        });
        let path_is_known = path.is_some();
        let mut path = path.unwrap_or_else(|| host.path.clone());
        let program = running
            .and_then(|pid| fs::read_link(entry(pid, "exe")).ok())
            .map(|program| match program.to_str().and_then(|name| name.strip_suffix(REPLACED)) {
                Some(name) => PathBuf::from(name),
                None => program,
            })
            .or_else(|| find_program(&path, "containerd"));
        if let Some(directory) = program.as_deref().and_then(Path::parent)
            && !path.iter().any(|known| known == directory)
        {
            path.push(directory.to_owned());
        }
        Self { arguments: arguments.map(|arguments| strings(&arguments)), program, path, path_is_known }
    }

    /// The file of its configuration.
    fn configuration(&self, host: &Host) -> PathBuf {
        self.argument("config", "c").map_or_else(|| host.etc.join("containerd/config.toml"), PathBuf::from)
    }

    /// Where it keeps what runs: its argument, else its configuration's word, else the usual place.
    pub fn state(&self, host: &Host) -> PathBuf {
        let configured = || Configuration::read(&self.configuration(host)).ok()?.state();
        let state = self.argument("state", "state").or_else(configured);
        state.map_or_else(|| host.run.join("containerd"), PathBuf::from)
    }

    /// The value of an argument of the running process, by its long name (one dash or two) or its short one.
    fn argument(&self, long: &str, short: &str) -> Option<String> {
        let words = self.arguments.as_deref()?;
        words.iter().enumerate().find_map(|(at, word)| {
            let name = word.strip_prefix('-')?;
            let name = name.strip_prefix('-').unwrap_or(name);
            match name.split_once('=') {
                Some((name, value)) => (name == long || name == short).then(|| value.to_owned()),
                None => (name == long || name == short).then(|| words.get(at + 1).cloned())?,
            }
        })
    }
}

/// The texts between zeros.
pub fn strings(bytes: &[u8]) -> Vec<String> {
    let texts = bytes.split(|byte| *byte == 0).filter(|text| !text.is_empty());
    texts.map(|text| String::from_utf8_lossy(text).into_owned()).collect()
}

/// The pid of containerd; of several the one that began first, by its number.
fn process(proc: &Path) -> Option<u32> {
    let entries = fs::read_dir(proc).ok()?;
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        fs::read(proc.join(pid.to_string()).join("comm")).is_ok_and(|name| name.trim_ascii_end() == b"containerd")
    })
    .min()
}

/// The points about containerd.
pub fn points(host: &Host, containerd: &Containerd) -> Vec<Point> {
    let file = containerd.configuration(host);
    let configuration = Configuration::read(&file);
    let configured = || configuration.as_ref().ok().and_then(Configuration::address);
    let address = containerd.argument("address", "a").or_else(configured);
    let socket = address.map_or_else(|| host.run.join("containerd/containerd.sock"), PathBuf::from);
    let mut points = vec![version(containerd), running(&socket)];
    match configuration {
        Err(cause) => points.push(Point::failed(
            "containerd.config",
            format!("{}: containerd does not start with it", one_line(&cause)),
            "correct the file, then: systemctl restart containerd",
        )),
        Ok(configuration) => {
            points.push(configuration.point());
            points.push(registration::point(&configuration, containerd));
        }
    }
    points
}

fn version(containerd: &Containerd) -> Point {
    let name = "containerd.version";
    let Some(program) = &containerd.program else {
        let what = "containerd is not installed, or not in the usual places";
        return Point::failed(name, what, "install it (Debian: apt install containerd), or start it: then it is found");
    };
    let shown = program.display();
    match Answer::text(Command::new(program).arg("--version"), LIMIT) {
        Err(cause) => {
            Point::warning(name, format!("{shown} does not say its version: {cause}"), "see whether it starts at all")
        }
        Ok(text) => judge_version(&shown.to_string(), &text),
    }
}

/// `containerd github.com/containerd/containerd 1.7.24 <commit>`; since 2.0 with `/v2` and a `v` before the number.
fn judge_version(program: &str, text: &str) -> Point {
    let name = "containerd.version";
    let word = text.split_whitespace().nth(2).unwrap_or_default();
    let mut numbers = word.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        let what = format!("{program} says a version that is not understood: {:?}", text.trim());
        return Point::warning(name, what, "husk is tested with containerd 1.6, 1.7 and 2.1");
    };
    if (major, minor) < OLDEST {
        let what = format!("{word} ({program}) is older than what husk is tested with");
        return Point::warning(name, what, "use containerd 1.6 or newer");
    }
    Point::ok(name, format!("{word} ({program})"))
}

/// Connects, and does not wait if it cannot at once.
fn connect(socket: &Path) -> std::io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    Ok(rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?)
}

fn running(socket: &Path) -> Point {
    let name = "containerd.running";
    let shown = socket.display();
    match connect(socket) {
        Ok(_) => Point::ok(name, format!("it listens at {shown}")),
        Err(cause) if cause.kind() == ErrorKind::WouldBlock => Point::failed(
            name,
            format!("it takes no connections at {shown}: too many wait already"),
            "look at what it does: its log, and systemctl status containerd",
        ),
        Err(cause) if cause.kind() == ErrorKind::PermissionDenied => Point::unknown(
            name,
            format!("{shown} must not be opened by this user"),
            "try again as root: sudo husk check",
        ),
        Err(cause) => {
            let what = format!("nobody listens at {shown}: {cause}");
            Point::failed(name, what, "start it: systemctl start containerd; its log says why it ended")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use std::os::unix::net::UnixListener;

    #[test]
    fn versions_are_understood() {
        let point =
            judge_version("containerd", "containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6\n");
        assert_eq!((point.state, point.what.as_str()), (State::Ok, "1.7.24~ds1 (containerd)"));
        let point = judge_version("c", "containerd github.com/containerd/containerd/v2 v2.1.4 0123abc");
        assert_eq!(point.state, State::Ok);
        let point = judge_version("c", "containerd github.com/containerd/containerd 1.5.9 x");
        assert_eq!(point.state, State::Warning);
        assert!(judge_version("c", "nonsense").what.contains("not understood"));
    }

    fn host() -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        fs::create_dir_all(host.run.join("containerd")).unwrap();
        fs::create_dir_all(host.proc.join("77")).unwrap();
        fs::write(host.proc.join("77/comm"), "containerd\n").unwrap();
        fs::write(host.proc.join("77/cmdline"), b"containerd\0--config\0/etc/c.toml\0".as_slice()).unwrap();
        fs::write(host.proc.join("77/environ"), b"HOME=/\0PATH=/opt/bin:/bin\0".as_slice()).unwrap();
        std::os::unix::fs::symlink("/opt/c/containerd", host.proc.join("77/exe")).unwrap();
        (root, host)
    }

    #[test]
    fn the_running_one_says_where_it_looks() {
        let (_root, host) = host();
        let found = Containerd::find(&host);
        assert_eq!(found.path, ["/opt/bin", "/bin", "/opt/c"].map(PathBuf::from));
        assert_eq!(found.configuration(&host), Path::new("/etc/c.toml"));
        fs::write(host.proc.join("77/cmdline"), b"containerd\0".as_slice()).unwrap();
        assert_eq!(Containerd::find(&host).configuration(&host), host.etc.join("containerd/config.toml"));
        assert_eq!(Containerd::find(&host).state(&host), host.run.join("containerd"));
        fs::create_dir_all(host.etc.join("containerd")).unwrap();
        fs::write(host.etc.join("containerd/config.toml"), "state = \"/run/other\"\n").unwrap();
        assert_eq!(Containerd::find(&host).state(&host), Path::new("/run/other"));
        fs::write(host.proc.join("77/cmdline"), b"containerd\0--state=/run/k3s\0".as_slice()).unwrap();
        assert_eq!(Containerd::find(&host).state(&host), Path::new("/run/k3s"));
        fs::remove_file(host.proc.join("77/exe")).unwrap();
        std::os::unix::fs::symlink("/opt/c/containerd (deleted)", host.proc.join("77/exe")).unwrap();
        assert_eq!(Containerd::find(&host).program.as_deref(), Some(Path::new("/opt/c/containerd")));
        fs::write(host.proc.join("77/comm"), "containerd-shim\n").unwrap();
        let none = Containerd::find(&host);
        assert!(!none.path_is_known && none.program.is_none());
        assert_eq!(version(&none).state, State::Failed);
    }

    #[test]
    fn a_socket_answers_or_not() {
        let (_root, host) = host();
        let socket = host.run.join("containerd/containerd.sock");
        let absent = running(&socket);
        assert!(absent.state == State::Failed && absent.remedy.unwrap().contains("systemctl start"));
        let listener = UnixListener::bind(&socket).unwrap();
        assert_eq!(running(&socket).state, State::Ok);
        drop(listener);
        assert!(running(&socket).what.contains("refused"));
    }
}
