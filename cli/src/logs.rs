//! `husk logs`: husk's log of a pod and its guest's console; of a pod that has ended, what containerd's log has of it.

mod ended;
mod source;

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use husk_shim::host::{CONSOLE, LOG, OLD_LOG};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};

use self::source::Source;
use crate::host::Host;
use crate::pods;
use crate::terminal::{escaped, is_terminal};

/// What may be asked.
#[derive(clap::Args)]
#[command(after_help = "The console's lines have no time of their own, so the two stand one after the other. A pod's \
    directory goes with the pod: of one that has ended, also by a failed start, the lines that containerd took into its \
    own log are shown, from the journal of its service or from the file that --from names.")]
pub struct Arguments {
    /// The pod: for a lone container its id, in Kubernetes the sandbox's
    id: String,
    /// containerd's namespace; without it, whichever has a pod of this id
    #[arg(long, short)]
    namespace: Option<String>,
    /// Go on with what is new until the pod ends
    #[arg(long, short)]
    follow: bool,
    /// A file with containerd's log, instead of the journal; `-` is the standard input
    #[arg(long, value_name = "FILE", conflicts_with = "follow")]
    from: Option<PathBuf>,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
enum LogsError {
    #[error("{0}")]
    Pods(String),
    #[error("there is a pod {id} in the namespaces {}: say which with --namespace", namespaces.join(" and "))]
    Several { id: String, namespaces: Vec<String> },
    #[error("there is no pod {0} to follow: without --follow, what containerd's log has of an ended one is shown")]
    Gone(String),
    #[error(transparent)]
    Ended(#[from] ended::EndedError),
    #[error("cannot {what} {path}: {cause}")]
    Io { what: &'static str, path: PathBuf, cause: io::Error },
    /// Whoever read this wants no more.
    #[error("cannot print: {0}")]
    Output(io::Error),
}

/// Shows the logs.
pub fn run(arguments: &Arguments) -> ExitCode {
    let mut printer = Printer { out: io::stdout().lock(), escape: is_terminal(), title: None };
    match show(&Host::this(), arguments, &mut printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(LogsError::Output(cause)) if cause.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(cause) => {
            crate::complain(&cause.to_string());
            ExitCode::FAILURE
        }
    }
}

fn show(host: &Host, arguments: &Arguments, printer: &mut Printer<impl Write>) -> Result<(), LogsError> {
    let id = &arguments.id;
    if let Some(file) = &arguments.from {
        let found = ended::from_file(file, id, |line| printer.lines("containerd's log", line))?;
        return found.map_err(LogsError::Output);
    }
    let mut pods = pods::all(host).map_err(LogsError::Pods)?;
    pods.retain(|pod| pod.id == *id && arguments.namespace.as_ref().is_none_or(|wanted| *wanted == pod.namespace));
    match &pods[..] {
        [] if arguments.follow => Err(LogsError::Gone(id.clone())),
        [] => {
            let found =
                ended::from_journal(id, |line| printer.lines("containerd's log, of a pod that has ended", line))?;
            found.map_err(LogsError::Output)
        }
        [pod] => of_pod(&pod.directory, arguments.follow, printer),
        several => Err(LogsError::Several {
            id: id.clone(),
            namespaces: several.iter().map(|pod| pod.namespace.clone()).collect(),
        }),
    }
}

/// What is in the pod's directory, and what comes into it.
fn of_pod(directory: &Path, follow: bool, printer: &mut Printer<impl Write>) -> Result<(), LogsError> {
    let failed = |what| {
        let path = directory.to_owned();
        move |cause: io::Error| LogsError::Io { what, path, cause }
    };
    let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty()).map_err(|cause| failed("open")(cause.into()))?;
    // Before anything is read, so that nothing is missed.
    let changes = follow.then(|| watch(directory)).transpose().map_err(failed("watch"))?;
    let mut log = Source::new("husk's log", LOG, Some(OLD_LOG));
    let mut console = Source::new("the guest's console", CONSOLE, None);
    loop {
        // First of all: what is read after the end is all there is.
        let ended = !is_at(&opened, directory);
        for source in [&mut log, &mut console] {
            let text = source.read(&opened, ended || !follow).map_err(failed("read the logs in"))?;
            printer.lines(source.title(), &text).map_err(LogsError::Output)?;
        }
        let Some(changes) = changes.as_ref().filter(|_| !ended) else { break };
        wait(changes).map_err(failed("watch"))?;
    }
    if printer.title.is_none() {
        crate::complain("nothing yet: the log is empty (log.file_kib, log.level), and so is the guest's console");
    }
    Ok(())
}

/// Whether a directory is still at its path: a new pod of the same id has another.
fn is_at(directory: &OwnedFd, path: &Path) -> bool {
    match (rustix::fs::fstat(directory), rustix::fs::stat(path)) {
        (Ok(ours), Ok(there)) => (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino),
        _ => false,
    }
}

/// Watches what is written in a directory, and whether it goes: that is seen in the directory above. A file that we
/// have open keeps its directory, which so has no end of its own.
fn watch(directory: &Path) -> io::Result<OwnedFd> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    inotify::add_watch(&changes, directory, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)?;
    if let Some(above) = directory.parent() {
        inotify::add_watch(&changes, above, WatchFlags::DELETE)?;
    }
    Ok(changes)
}

/// Waits until something has changed.
fn wait(changes: &OwnedFd) -> io::Result<()> {
    match poll(&mut [PollFd::new(changes, PollFlags::IN)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(cause) => return Err(cause.into()),
    }
    let mut buffer = [const { MaybeUninit::uninit() }; 4096];
    let mut reader = inotify::Reader::new(changes, &mut buffer);
    // What it was does not matter.
    loop {
        match reader.next() {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(()),
            Err(cause) => return Err(cause.into()),
        }
    }
}

/// Prints lines below the title of where they come from.
struct Printer<W> {
    out: W,
    /// A person's terminal must not be moved about in.
    escape: bool,
    title: Option<&'static str>,
}

impl<W: Write> Printer<W> {
    fn lines(&mut self, title: &'static str, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.title != Some(title) {
            let gap = if self.title.is_some() { "\n" } else { "" };
            writeln!(self.out, "{gap}== {title} ==")?;
            self.title = Some(title);
        }
        let text = if self.escape { escaped(text, true) } else { text.into() };
        self.out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            writeln!(self.out)?;
        }
        self.out.flush()
    }
}

#[cfg(test)]
#[path = "logs/tests.rs"]
mod tests;
