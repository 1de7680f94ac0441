//! Sequences from a seed: mostly what a client may do next, and now and then anything.

use fastrand::Rng;

use super::model::{KILL, Life, Model, TERM};
use super::step::{Change, EXECS, Plain, Process, Program, Single, Step, Target};

/// Steps of a sequence, before those that end it.
const LENGTH: std::ops::Range<usize> = 5..20;
/// Of ten steps, how many are what a client may do.
const SENSIBLE: u32 = 7;
/// Nothing, a hang-up, USR1, the one that is ignored by default, none that there is; and those that end programs.
const SIGNALS: [u32; 7] = [0, 1, KILL, 10, TERM, 17, 99];
/// What a container that was not started can get: its process is still the runtime's own.
const SIGNALS_BEFORE_START: [u32; 4] = [0, KILL, 17, 99];

/// The sequence of this seed.
#[must_use]
pub fn generate(seed: u64) -> Vec<Step> {
    let mut rng = Rng::with_seed(seed);
    let mut model = Model::default();
    let mut steps = Vec::new();
    let length = rng.usize(LENGTH);
    while steps.len() < length {
        let step = if rng.u32(..10) < SENSIBLE { sensible(&mut rng, &model) } else { any(&mut rng) };
        if !is_permitted(&model, &step) {
            continue;
        }
        foretell(&mut model, &step);
        steps.push(step);
        if step == Step::Shutdown && !model.is_there() {
            break;
        }
    }
    steps
}

/// Whether [`is_permitted`] holds for all of them.
#[must_use]
pub fn are_permitted(steps: &[Step]) -> bool {
    let mut model = Model::default();
    steps.iter().all(|step| {
        let permitted = is_permitted(&model, step);
        foretell(&mut model, step);
        permitted
    })
}

/// Whether a call has one answer. Left out is what containerd's clients never do and what runc's shim has no answer for
/// (it panics, or tells an event twice), and what depends on which of two processes is faster.
fn is_permitted(model: &Model, step: &Step) -> bool {
    let created = model.init.life == Life::Made;
    match *step {
        // containerd ends the shim after a Delete, and after a Create that failed.
        Step::Create(_) => model.is_there() || !model.was_asked(),
        // runc's shim tells the exit of one that has ended again, and panics over one that could not be started.
        Step::Single(Single::Start, target @ Target::Exec(_)) => {
            model.known(target).is_none_or(|exec| exec.life != Life::Stopped && !exec.failed)
        }
        // The signal may reach the runtime's process before it is the container's.
        Step::Kill(Target::Init, signal, _) if created => SIGNALS_BEFORE_START.contains(&signal),
        // runc thaws a container to signal all of it, and its shim does not know.
        Step::Kill(Target::Init, signal, true) if model.paused && signal != KILL => false,
        // Who is faster, the first process's end or the handler of another?
        Step::Kill(Target::Init, TERM, true) => {
            !model.init.handles(TERM) || !model.execs.iter().any(|exec| exec.life == Life::Running)
        }
        // Neither does containerd's client delete it then. It ends by that: does its exit count, and is it told first?
        Step::Single(Single::Delete | Single::DeleteTwice, Target::Init) if created => false,
        // The end of a terminal's input hangs it up under runc.
        Step::CloseIo(target, true) if model.known(target).is_some_and(|known| known.has_terminal()) => false,
        // runc's shim forgets it then, and the process waits for its input for ever. husk's sees the end.
        Step::CloseIo(target @ Target::Exec(_), true)
            if model.known(target).is_some_and(|exec| exec.life == Life::Made) =>
        {
            false
        }
        Step::CloseIo(..) | Step::Kill(..) => {
            let mut after = model.clone();
            foretell(&mut after, step);
            let waiting = |known: &super::model::Known| known.ends_at_resume;
            !waiting(&after.init) || !after.execs.iter().any(waiting)
        }
        // It ends the sequence: late enough.
        Step::Shutdown => model.is_there() || model.was_asked(),
        _ => true,
    }
}

/// What will have changed after this step.
fn foretell(model: &mut Model, step: &Step) {
    if is_legal(model, step) {
        model.apply(step);
    } else {
        model.refused(step);
    }
}

/// Whether the call will succeed.
fn is_legal(model: &Model, step: &Step) -> bool {
    let alive = matches!(model.init.life, Life::Made | Life::Running);
    let is = |target, lives: &[Life]| model.known(target).is_some_and(|known| lives.contains(&known.life));
    match *step {
        Step::Create(process) => !model.is_there() && process.program.runs(),
        Step::Exec(exec, _) => {
            let free = exec.is_none_or(|n| is(Target::Exec(n), &[Life::Absent, Life::Deleted]));
            alive && !model.paused && free
        }
        Step::Single(Single::Start, Target::Init) => is(Target::Init, &[Life::Made]),
        Step::Single(Single::Start, target) => {
            is(target, &[Life::Made]) && alive && !model.paused && model.known(target).is_some_and(|exec| exec.runs())
        }
        Step::Single(Single::Delete | Single::DeleteTwice, target) => is(target, &[Life::Made, Life::Stopped]),
        Step::Single(..) | Step::Update(..) | Step::Shutdown => true,
        Step::Kill(target, ..) => is(target, &[Life::Made, Life::Running]),
        Step::CloseIo(target, _) => is(target, &[Life::Made, Life::Running, Life::Stopped]),
        Step::Plain(Plain::Pause, _) => is(Target::Init, &[Life::Running]) && !model.paused,
        Step::Plain(Plain::Resume, _) => model.paused,
        Step::Plain(call, _) => call != Plain::Checkpoint,
    }
}

/// What a client may do next.
fn sensible(rng: &mut Rng, model: &Model) -> Step {
    let one = |rng: &mut Rng, lives: &[Life]| {
        let execs = (0..EXECS.len()).filter(|n| lives.contains(&model.execs[*n].life));
        rng.choice(execs.collect::<Vec<_>>()).map(Target::Exec)
    };
    let mut choices: Vec<(u32, Step)> = Vec::new();
    if !model.is_there() {
        choices.push((8, if model.was_asked() { Step::Shutdown } else { Step::Create(process(rng)) }));
    }
    match model.init.life {
        Life::Made => {
            choices.push((12, Step::Single(Single::Start, Target::Init)));
            choices.push((1, Step::Kill(Target::Init, KILL, rng.bool())));
        }
        Life::Running => {
            choices.push((3, Step::Plain(if model.paused { Plain::Resume } else { Plain::Pause }, Target::Init)));
            choices.push((2, Step::Kill(Target::Init, *rng.choice(&SIGNALS).unwrap(), rng.bool())));
            choices.push((2, Step::CloseIo(Target::Init, true)));
            choices.push((3, Step::Plain(*rng.choice(Plain::ALL).unwrap(), Target::Init)));
            choices.push((1, Step::Update(Target::Init, *rng.choice(Change::ALL).unwrap())));
        }
        Life::Stopped => choices.push((3, Step::Single(Single::Delete, Target::Init))),
        Life::Absent | Life::Deleted => {}
    }
    if model.is_there() {
        let target = target(rng);
        choices.push((2, Step::Single(Single::Wait, target)));
        choices.push((2, Step::Single(Single::State, target)));
        if let Some(Target::Exec(n)) = one(rng, &[Life::Absent, Life::Deleted]) {
            choices.push((4, Step::Exec(Some(n), process(rng))));
        }
        if let Some(added) = one(rng, &[Life::Made]) {
            choices.push((8, Step::Single(Single::Start, added)));
            choices.push((1, Step::Single(Single::Delete, added)));
        }
        if let Some(running) = one(rng, &[Life::Running]) {
            choices.push((4, Step::Kill(running, *rng.choice(&SIGNALS).unwrap(), false)));
            choices.push((3, Step::CloseIo(running, true)));
            choices.push((1, Step::Single(Single::Resize, running)));
        }
        if let Some(stopped) = one(rng, &[Life::Stopped]) {
            let twice = if rng.u32(..4) == 0 { Single::DeleteTwice } else { Single::Delete };
            choices.push((3, Step::Single(twice, stopped)));
        }
    }
    let mut place = rng.u32(..choices.iter().map(|(weight, _)| weight).sum::<u32>());
    for (weight, step) in choices {
        match place.checked_sub(weight) {
            Some(rest) => place = rest,
            None => return step,
        }
    }
    unreachable!("the place is below the sum of the weights")
}

/// Any call, about anything.
fn any(rng: &mut Rng) -> Step {
    let target = target(rng);
    // Calls about containers do not know execs.
    let container = if target == Target::Nobody { target } else { Target::Init };
    match rng.u32(..20) {
        0 => Step::Create(process(rng)),
        1 => Step::Exec(None, process(rng)),
        2 | 3 => Step::Exec(Some(rng.usize(..EXECS.len())), process(rng)),
        4..=9 => Step::Single(*rng.choice(Single::ALL).unwrap(), target),
        10..=12 => Step::Kill(target, *rng.choice(&SIGNALS).unwrap(), rng.u32(..4) == 0),
        13 | 14 => Step::CloseIo(target, rng.bool()),
        15..=17 => Step::Plain(*rng.choice(Plain::ALL).unwrap(), container),
        18 => Step::Update(container, *rng.choice(Change::ALL).unwrap()),
        _ => Step::Shutdown,
    }
}

fn target(rng: &mut Rng) -> Target {
    match rng.u32(..20) {
        0..=8 => Target::Init,
        9..=17 => Target::Exec(rng.usize(..EXECS.len())),
        18 => Target::NoExec,
        _ => Target::Nobody,
    }
}

fn process(rng: &mut Rng) -> Process {
    let program = match rng.u32(..20) {
        0..=6 => Program::Sleeper,
        7..=9 => Program::Trapper,
        10..=12 => Program::Reader,
        13 | 14 => Program::True,
        15 => Program::Seven,
        16 | 17 => Program::Writer,
        18 => Program::Missing,
        _ => Program::NotAProgram,
    };
    // One that reads and has nothing to read ends at once.
    Process { program, terminal: rng.u32(..6) == 0, stdin: program.reads() || rng.bool() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        assert_eq!(generate(7), generate(7));
        assert_ne!(generate(7), generate(8));
    }

    #[test]
    fn sequences_can_be_written_down_and_read() {
        for seed in 0..500 {
            for step in generate(seed) {
                assert_eq!(step.to_string().parse(), Ok(step));
            }
        }
    }

    #[test]
    fn every_call_is_made_in_every_state_of_a_container() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..3000 {
            let mut model = Model::default();
            for step in generate(seed) {
                assert!(is_permitted(&model, &step), "{step} of seed {seed}");
                let call = step.to_string();
                let call = call.split(' ').next().unwrap().to_owned();
                seen.insert((call, model.state(Target::Init).to_string()));
                foretell(&mut model, &step);
            }
        }
        let calls = ["exec", "start", "state", "wait", "resize", "delete", "delete-twice", "kill", "closeio", "pids"];
        let others = ["pause", "resume", "stats", "connect", "checkpoint", "update", "shutdown"];
        for call in calls.into_iter().chain(others) {
            for state in ["created", "running", "paused", "stopped", "deleted"] {
                assert!(seen.contains(&(call.to_owned(), state.to_owned())), "{call} of a {state} container");
            }
        }
    }
}
