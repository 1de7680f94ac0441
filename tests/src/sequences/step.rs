//! What a sequence is made of, as people read and write it: one call a line.

use std::fmt;
use std::str::FromStr;

/// Ids of execs that sequences use.
pub const EXECS: [&str; 3] = ["e0", "e1", "e2"];
/// An exec id with a path in it, which containerd's clients refuse themselves.
pub const BAD_EXEC: &str = "../bad";
/// What [`Target::Nobody`] is called in a sequence.
const NOBODY: &str = "nobody";
/// What [`Target::NoExec`] is called.
const NO_EXEC: &str = "noexec";

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The container's first process.
    Init,
    /// One of [`EXECS`], by its place there.
    Exec(usize),
    /// A container that there never was.
    Nobody,
    /// An exec of the container that there never was.
    NoExec,
}

impl Target {
    /// The exec's id in a request.
    #[must_use]
    pub fn exec_id(self) -> &'static str {
        match self {
            Self::Init | Self::Nobody => "",
            Self::Exec(n) => EXECS[n],
            Self::NoExec => NO_EXEC,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Init => "init",
            Self::Nobody => NOBODY,
            other => other.exec_id(),
        })
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "init" => Ok(Self::Init),
            NOBODY => Ok(Self::Nobody),
            NO_EXEC => Ok(Self::NoExec),
            other => {
                let exec = EXECS.iter().position(|name| *name == other);
                exec.map(Self::Exec).ok_or_else(|| format!("{other}: neither init nor an exec nor {NOBODY}"))
            }
        }
    }
}

/// A type of plain values that have a word each, which is how they are written and read.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant),*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),* })
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$variant),)*
                    other => Err(format!("{other}: none of {:?}", Self::ALL)),
                }
            }
        }
    };
}

words! {
    /// What a process runs. One that lives on says `ready` first, so that nobody signals its start-up.
    Program {
        /// Lives until it is killed.
        Sleeper = "sleeper",
        /// Ends at once, with 0.
        True = "true",
        /// Ends at once, with 7.
        Seven = "seven",
        /// Ends with 5 on SIGTERM, with 6 at the end of its input.
        Trapper = "trapper",
        /// Ends with 3 at the end of its input.
        Reader = "reader",
        /// Writes to both outputs and ends with 4.
        Writer = "writer",
        /// There is no such file.
        Missing = "missing",
        /// The file is no program.
        NotAProgram = "notaprogram",
    }
}

impl Program {
    /// The words of its command line.
    #[must_use]
    pub fn args(self) -> Vec<&'static str> {
        match self {
            Self::Sleeper => vec!["sh", "-c", "echo ready; exec sleep 1000000"],
            Self::True => vec!["true"],
            Self::Seven => vec!["sh", "-c", "exit 7"],
            Self::Trapper => vec!["sh", "-c", "trap 'exit 5' TERM; echo ready; while read line; do :; done; exit 6"],
            Self::Reader => vec!["sh", "-c", "echo ready; read line; exit 3"],
            Self::Writer => vec!["sh", "-c", "seq 1 500; echo error >&2; exit 4"],
            Self::Missing => vec!["/bin/there-is-no-such-program"],
            Self::NotAProgram => vec!["/etc/passwd"],
        }
    }

    /// Runs until somebody ends it.
    #[must_use]
    pub fn lives(self) -> bool {
        matches!(self, Self::Sleeper | Self::Trapper | Self::Reader)
    }

    /// Ends when its input does.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self, Self::Trapper | Self::Reader)
    }

    /// Whether there is anything to run.
    #[must_use]
    pub fn runs(self) -> bool {
        !matches!(self, Self::Missing | Self::NotAProgram)
    }
}

words! {
    /// What Update asks for.
    Change {
        /// An empty document.
        Empty = "empty",
        /// A limit of memory.
        Memory = "memory",
        /// A limit of processes.
        Pids = "pids",
        /// A share of the CPU.
        Cpu = "cpu",
        /// A document that is none.
        Garbage = "garbage",
    }
}

words! {
    /// Calls with a container's id and nothing else that matters here.
    Plain {
        /// Its processes.
        Pids = "pids",
        /// Freezes it.
        Pause = "pause",
        /// Lets it go on.
        Resume = "resume",
        /// What it uses.
        Stats = "stats",
        /// The shim's and the task's pid.
        Connect = "connect",
        /// Its state as an image.
        Checkpoint = "checkpoint",
    }
}

words! {
    /// Calls about one process and nothing else.
    Single {
        /// Starts it.
        Start = "start",
        /// What it is at.
        State = "state",
        /// Waits for its exit, beside the calls that follow.
        Wait = "wait",
        /// Sets its terminal's size.
        Resize = "resize",
        /// Forgets it.
        Delete = "delete",
        /// Two Deletes at once.
        DeleteTwice = "delete-twice",
    }
}

/// A process as Create and Exec ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// What it runs.
    pub program: Program,
    /// It has a terminal.
    pub terminal: bool,
    /// It has an input.
    pub stdin: bool,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |on, word| if on { word } else { "" };
        write!(f, "{}{}{}", self.program, word(self.terminal, " terminal"), word(self.stdin, " stdin"))
    }
}

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Makes the container.
    Create(Process),
    /// Adds an exec; none: under [`BAD_EXEC`].
    Exec(Option<usize>, Process),
    /// One process.
    Single(Single, Target),
    /// A signal.
    Kill(Target, u32, bool),
    /// The caller has closed its end of the input too, if `true`.
    CloseIo(Target, bool),
    /// The container ([`Target::Init`]) or none.
    Plain(Plain, Target),
    /// Its limits.
    Update(Target, Change),
    /// Ends the shim, if it has no container.
    Shutdown,
}

impl Step {
    /// What it is about.
    #[must_use]
    pub fn target(&self) -> Target {
        match *self {
            Self::Create(_) | Self::Shutdown => Target::Init,
            Self::Exec(n, _) => n.map_or(Target::NoExec, Target::Exec),
            Self::Single(_, target)
            | Self::Kill(target, ..)
            | Self::CloseIo(target, _)
            | Self::Plain(_, target)
            | Self::Update(target, _) => target,
        }
    }

    /// The call's word, without what it is about.
    #[must_use]
    pub fn call(&self) -> String {
        self.to_string().split_whitespace().next().unwrap_or_default().to_owned()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(process) => write!(f, "create {process}"),
            Self::Exec(exec, process) => write!(f, "exec {} {process}", exec.map_or(BAD_EXEC, |n| EXECS[n])),
            Self::Single(call, target) => write!(f, "{call} {target}"),
            Self::Kill(target, signal, all) => {
                write!(f, "kill {target} {signal}{}", if *all { " all" } else { "" })
            }
            Self::CloseIo(target, own) => write!(f, "closeio {target}{}", if *own { " own" } else { "" }),
            Self::Plain(call, target) => write!(f, "{call} {target}"),
            Self::Update(target, change) => write!(f, "update {target} {change}"),
            Self::Shutdown => f.write_str("shutdown"),
        }
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let process = |words: &[&str]| {
            let (program, flags) = words.split_first().ok_or("which program?")?;
            let mut process = Process { program: program.parse()?, terminal: false, stdin: false };
            for flag in flags {
                match *flag {
                    "terminal" => process.terminal = true,
                    "stdin" => process.stdin = true,
                    other => return Err(format!("{other}: neither terminal nor stdin")),
                }
            }
            Ok(process)
        };
        let parsed = match &words[..] {
            ["create", rest @ ..] => Self::Create(process(rest)?),
            ["exec", id, rest @ ..] => {
                let exec = EXECS.iter().position(|name| name == id);
                Self::Exec(exec, process(rest)?)
            }
            ["kill", target, signal, rest @ ..] => {
                let signal = signal.parse().map_err(|_| format!("{signal}: no number"))?;
                Self::Kill(target.parse()?, signal, rest == ["all"])
            }
            ["closeio", target, rest @ ..] => Self::CloseIo(target.parse()?, rest == ["own"]),
            ["update", target, change] => Self::Update(target.parse()?, change.parse()?),
            ["shutdown"] => Self::Shutdown,
            [call, target] => match call.parse() {
                Ok(call) => Self::Single(call, target.parse()?),
                Err(_) => Self::Plain(call.parse()?, target.parse()?),
            },
            _ => return Err(format!("{line}: no call")),
        };
        // A word too many must not be passed over.
        if parsed.to_string() == words.join(" ") { Ok(parsed) } else { Err(format!("{line}: is that {parsed}?")) }
    }
}
