//! What is known of a container from the answers so far: which events have to come, and what the next call may be.

use std::fmt;

use super::step::{BAD_EXEC, EXECS, Plain, Process, Program, Single, Step, Target};

/// The signal that nothing survives.
pub const KILL: u32 = 9;
/// The one that programs may handle.
pub const TERM: u32 = 15;
/// Signals that end a program without a handler, but not a namespace's first process.
const ENDING: [u32; 3] = [1, 10, TERM];

/// What a process is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Nobody has asked for it.
    Absent,
    /// Created, or added, and not started.
    Made,
    /// Started.
    Running,
    /// Ended.
    Stopped,
    /// It was there.
    Deleted,
}

/// One process.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// What it is at.
    pub life: Life,
    /// How it was asked for.
    pub process: Option<Process>,
    /// Its input has ended: both ends are closed, or nobody has one.
    own_input_closed: bool,
    shim_input_closed: bool,
    /// It ends as soon as the container goes on.
    pub ends_at_resume: bool,
    /// It could not be started.
    pub failed: bool,
}

impl Known {
    const ABSENT: Self = Self {
        life: Life::Absent,
        process: None,
        own_input_closed: false,
        shim_input_closed: false,
        ends_at_resume: false,
        failed: false,
    };

    fn made(process: Process) -> Self {
        Self { life: Life::Made, process: Some(process), ..Self::ABSENT }
    }

    /// It was asked for with a terminal.
    #[must_use]
    pub fn has_terminal(&self) -> bool {
        self.process.is_some_and(|process| process.terminal)
    }

    /// There is a program to run.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.process.is_some_and(|process| process.program.runs())
    }

    /// It runs, and a signal makes it do something.
    #[must_use]
    pub fn handles(&self, signal: u32) -> bool {
        let traps = self.process.is_some_and(|process| process.program == Program::Trapper);
        self.life == Life::Running && signal == TERM && traps
    }

    fn has_no_input(&self) -> bool {
        let asked = self.process.is_some_and(|process| process.stdin);
        !asked || (self.own_input_closed && self.shim_input_closed)
    }
}

/// An event that has to come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Of which process.
    pub process: &'static str,
    /// The last word of its topic.
    pub topic: &'static str,
}

fn expect(process: &'static str, topic: &'static str) -> Expected {
    Expected { process, topic }
}

/// A container with its execs.
#[derive(Debug, Clone)]
pub struct Model {
    /// Its first process.
    pub init: Known,
    /// The others.
    pub execs: [Known; EXECS.len()],
    /// It is frozen.
    pub paused: bool,
    /// Somebody has asked for a container, if in vain.
    asked: bool,
}

impl Default for Model {
    fn default() -> Self {
        Self { init: Known::ABSENT, execs: [Known::ABSENT; EXECS.len()], paused: false, asked: false }
    }
}

impl Model {
    /// The process, if it is one that sequences make.
    #[must_use]
    pub fn known(&self, target: Target) -> Option<&Known> {
        match target {
            Target::Init => Some(&self.init),
            Target::Exec(n) => Some(&self.execs[n]),
            Target::Nobody | Target::NoExec => None,
        }
    }

    fn known_mut(&mut self, target: Target) -> Option<&mut Known> {
        match target {
            Target::Init => Some(&mut self.init),
            Target::Exec(n) => Some(&mut self.execs[n]),
            Target::Nobody | Target::NoExec => None,
        }
    }

    /// The container is there, in whatever state.
    #[must_use]
    pub fn is_there(&self) -> bool {
        !matches!(self.init.life, Life::Absent | Life::Deleted)
    }

    /// Somebody has asked this shim for a container, and may have got none.
    #[must_use]
    pub fn was_asked(&self) -> bool {
        self.asked
    }

    /// Whether a process runs that only a call can end.
    #[must_use]
    pub fn runs(&self, target: Target) -> bool {
        self.known(target).is_some_and(|known| known.life == Life::Running)
    }

    /// What the call has changed, if it was answered with success, and the events that it has to bring.
    pub fn apply(&mut self, step: &Step) -> Vec<Expected> {
        match *step {
            Step::Create(process) => {
                *self = Self { init: Known::made(process), asked: true, ..Self::default() };
                vec![expect("init", "create")]
            }
            Step::Exec(None, _) => vec![expect(BAD_EXEC, "exec-added")],
            Step::Exec(Some(n), process) => {
                self.execs[n] = Known::made(process);
                vec![expect(EXECS[n], "exec-added")]
            }
            Step::Single(Single::Start, target) => self.started(target),
            Step::Single(Single::Delete | Single::DeleteTwice, target) => self.deleted(target),
            Step::Single(..) | Step::Update(..) | Step::Shutdown => Vec::new(),
            Step::Kill(target, signal, all) => self.killed(target, signal, all),
            Step::CloseIo(target, own) => {
                if let Some(known) = self.known_mut(target) {
                    known.shim_input_closed = true;
                    known.own_input_closed |= own;
                }
                self.starved()
            }
            Step::Plain(Plain::Pause, _) => {
                self.paused = true;
                vec![expect("init", "paused")]
            }
            Step::Plain(Plain::Resume, _) => self.resumed(),
            Step::Plain(Plain::Checkpoint, _) => vec![expect("init", "checkpointed")],
            Step::Plain(..) => Vec::new(),
        }
    }

    /// What has changed though the call was refused.
    pub fn refused(&mut self, step: &Step) -> Vec<Expected> {
        match *step {
            Step::Create(_) => self.asked = true,
            Step::Single(Single::Start, target) => {
                let alive = matches!(self.init.life, Life::Made | Life::Running);
                if let Some(known) = self.known_mut(target) {
                    known.failed |= alive && known.life == Life::Made;
                }
            }
            // The caller's own end.
            Step::CloseIo(target, true) => {
                if let Some(known) = self.known_mut(target) {
                    known.own_input_closed = true;
                }
            }
            _ => {}
        }
        self.starved()
    }

    fn started(&mut self, target: Target) -> Vec<Expected> {
        let Some(known) = self.known_mut(target) else { return Vec::new() };
        known.life = Life::Running;
        let ends = known
            .process
            .is_some_and(|process| !process.program.lives() || (process.program.reads() && known.has_no_input()));
        let label = label(target);
        let mut expected = vec![expect(label, if target == Target::Init { "start" } else { "exec-started" })];
        if ends {
            expected.extend(self.exit(target));
        }
        expected
    }

    fn deleted(&mut self, target: Target) -> Vec<Expected> {
        let Some(known) = self.known_mut(target) else { return Vec::new() };
        let before = std::mem::replace(&mut known.life, Life::Deleted);
        if target == Target::Init {
            // They go with it.
            self.execs.iter_mut().filter(|exec| exec.life != Life::Absent).for_each(|exec| exec.life = Life::Deleted);
        }
        match (target, before) {
            // Deleting one that was never started ends its first process, which waits to be started.
            (Target::Init, Life::Made) => vec![expect("init", "exit"), expect("init", "delete")],
            (Target::Init, _) => vec![expect("init", "delete")],
            _ => Vec::new(),
        }
    }

    fn killed(&mut self, target: Target, signal: u32, all: bool) -> Vec<Expected> {
        let execs = (0..EXECS.len()).map(Target::Exec);
        // An exec's signal is for that process.
        let all = all && target == Target::Init;
        let targets: Vec<Target> = if all { execs.chain([Target::Init]).collect() } else { vec![target] };
        targets.into_iter().flat_map(|target| self.signalled(target, signal)).collect()
    }

    fn signalled(&mut self, target: Target, signal: u32) -> Vec<Expected> {
        let paused = self.paused;
        let Some(known) = self.known_mut(target) else { return Vec::new() };
        let handles = known.handles(signal);
        let ends = match (known.life, target) {
            (Life::Running, Target::Init) => signal == KILL || handles,
            (Life::Running, _) => signal == KILL || ENDING.contains(&signal),
            (Life::Made, Target::Init) => signal == KILL,
            _ => false,
        };
        if !ends {
            return Vec::new();
        }
        // Without a handler the kernel ends it at once, frozen or not.
        if paused && handles {
            known.ends_at_resume = true;
            return Vec::new();
        }
        self.exit(target)
    }

    /// Programs whose input has ended, and who wait for that.
    fn starved(&mut self) -> Vec<Expected> {
        let mut expected = Vec::new();
        // The first process last: it takes the others with it.
        for target in (0..EXECS.len()).map(Target::Exec).chain([Target::Init]) {
            let paused = self.paused;
            let Some(known) = self.known_mut(target) else { continue };
            let reads = known.process.is_some_and(|process| process.program.reads() && !process.terminal);
            if known.life != Life::Running || !reads || !known.has_no_input() {
                continue;
            }
            if paused {
                known.ends_at_resume = true;
            } else {
                expected.extend(self.exit(target));
            }
        }
        expected
    }

    fn resumed(&mut self) -> Vec<Expected> {
        self.paused = false;
        let mut expected = vec![expect("init", "resumed")];
        for target in (0..EXECS.len()).map(Target::Exec).chain([Target::Init]) {
            if self.known(target).is_some_and(|known| known.life == Life::Running && known.ends_at_resume) {
                expected.extend(self.exit(target));
            }
        }
        expected
    }

    /// A process ends; the first one takes the others with it.
    fn exit(&mut self, target: Target) -> Vec<Expected> {
        let mut expected = Vec::new();
        if target == Target::Init {
            self.paused = false;
            for n in 0..EXECS.len() {
                if self.execs[n].life == Life::Running {
                    expected.extend(self.exit(Target::Exec(n)));
                }
            }
        }
        if let Some(known) = self.known_mut(target) {
            known.life = Life::Stopped;
            expected.push(expect(label(target), "exit"));
        }
        expected
    }

    /// The calls that end what is left, and the shim.
    #[must_use]
    pub fn ending(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.is_there() {
            if self.paused {
                steps.push(Step::Plain(Plain::Resume, Target::Init));
            }
            // Another one: it may end by going on.
            let mut after = self.clone();
            for step in &steps {
                after.apply(step);
            }
            if after.init.life != Life::Stopped {
                steps.push(Step::Kill(Target::Init, KILL, false));
            }
            steps.push(Step::Single(Single::Delete, Target::Init));
        }
        steps.push(Step::Shutdown);
        steps
    }

    /// The state that a call finds its target in, in words.
    #[must_use]
    pub fn state(&self, target: Target) -> State<'_> {
        State { model: self, target }
    }
}

fn label(target: Target) -> &'static str {
    match target {
        Target::Init | Target::Nobody => "init",
        other => other.exec_id(),
    }
}

/// A target's state in words.
pub struct State<'a> {
    model: &'a Model,
    target: Target,
}

impl fmt::Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let init = match self.model.init.life {
            Life::Absent => "absent",
            Life::Made => "created",
            Life::Running if self.model.paused => "paused",
            Life::Running => "running",
            Life::Stopped => "stopped",
            Life::Deleted => "deleted",
        };
        match self.target {
            Target::Init => f.write_str(init),
            Target::Nobody => f.write_str("absent"),
            other => {
                let exec = match self.model.known(other).map_or(Life::Absent, |known| known.life) {
                    Life::Absent => "absent",
                    Life::Made => "added",
                    Life::Running => "running",
                    Life::Stopped => "stopped",
                    Life::Deleted => "deleted",
                };
                write!(f, "{exec} in {init}")
            }
        }
    }
}
