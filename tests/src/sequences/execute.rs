//! One sequence against one shim.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::WaitResponse;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::model::{Expected, Model};
use super::place::{Place, left};
use super::server::Recorder;
use super::shim::{Shim, make_bundle, open_fifo, read_all};
use super::step::{Process, Program, Single, Step, Target};
use super::words::{Answer, Event, NO_ANSWER, Names, time};
use crate::host::patience;

/// Time for an event that has to come, and for a program to say that it runs.
const EVENT: Duration = Duration::from_secs(30);
/// One line of a transcript.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The call, or what else was looked at.
    pub call: String,
    /// What it is about, in words.
    pub target: String,
    /// What that was at.
    pub state: String,
    /// What came.
    pub answer: Answer,
    /// Events that had come by then, for people.
    pub events: Vec<String>,
}

impl Line {
    fn of(call: impl Into<String>, target: impl Into<String>, text: impl Into<String>) -> Self {
        let answer = Answer { text: text.into(), words: String::new() };
        Self { call: call.into(), target: target.into(), state: String::new(), answer, events: Vec::new() }
    }
}

/// The ends of a process's streams that the caller has.
pub(super) struct Streams {
    pub(super) label: String,
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) said: Vec<u8>,
    pub(super) names: [String; 3],
}

/// A Wait that was asked and that nobody has looked at since.
pub(super) struct Waiting {
    pub(super) line: usize,
    pub(super) answer: JoinHandle<ttrpc::Result<WaitResponse>>,
}

/// A sequence with a shim.
pub(super) struct Run<'a> {
    pub(super) place: &'a Place,
    pub(super) bundle: PathBuf,
    pub(super) shim: Shim,
    log: OwnedFd,
    recorder: Recorder,
    pub(super) model: Model,
    pub(super) names: Names,
    pub(super) streams: Vec<Streams>,
    /// How many have been asked for.
    pub(super) processes: usize,
    pub(super) waiting: Vec<Waiting>,
    pub(super) lines: Vec<Line>,
    told: usize,
}

/// Runs the steps, ends what is left by calls, and returns what came. `id` must be new.
///
/// # Panics
/// The host refuses what no shim has to do with.
pub async fn execute(place: &Place, program: &Path, id: &str, steps: &[Step]) -> Vec<Line> {
    let first = steps.iter().find_map(|step| if let Step::Create(process) = step { Some(*process) } else { None });
    let first = first.unwrap_or(Process { program: Program::True, terminal: false, stdin: false });
    let bundle = make_bundle(place.path(), id, &place.spec(id, first));
    let socket = place.path().join(format!("{id}.sock"));
    let recorder = Recorder::start(&socket).await;
    let log = open_fifo(&bundle.join("log"));
    let mut lines = match Shim::start(program, id, &bundle, &socket).await {
        Ok(shim) => {
            let names = Names { id: id.to_owned(), bundle: bundle.to_str().unwrap().to_owned(), ..Names::default() };
            let run = Run {
                place,
                bundle: bundle.clone(),
                shim,
                log,
                recorder,
                model: Model::default(),
                names,
                streams: Vec::new(),
                processes: 0,
                waiting: Vec::new(),
                lines: Vec::new(),
                told: 0,
            };
            run.all(steps).await
        }
        Err(cause) => {
            recorder.stop().await;
            let log = String::from_utf8_lossy(&read_all(&log)).into_owned();
            vec![Line::of("start of the shim", "", cause + &log)]
        }
    };
    lines.push(Line::of("left on the host", "", left(id)));
    fs::remove_dir_all(&bundle).unwrap();
    let _ = fs::remove_file(socket);
    lines
}

impl Run<'_> {
    async fn all(mut self, steps: &[Step]) -> Vec<Line> {
        for step in steps {
            if self.step(step).await {
                return self.finish().await;
            }
        }
        for step in self.model.clone().ending() {
            if self.step(&step).await {
                break;
            }
        }
        self.finish().await
    }

    /// Makes one call; returns whether it has ended the shim.
    async fn step(&mut self, step: &Step) -> bool {
        let (call, target) = (step.call(), step.target());
        let state = self.model.state(target).to_string();
        let line = Line { call, target: step.to_string(), state, answer: Answer::default(), events: Vec::new() };
        self.lines.push(line);
        let answer = self.call(step).await;
        let lost = answer.text == NO_ANSWER;
        let last = *step == Step::Shutdown && !self.model.is_there();
        // The end of the connection may come before the answer.
        let answer = if last && lost { Answer::ok(&[]) } else { answer };
        let (ok, at) = (answer.is_ok(), self.lines.len() - 1);
        self.lines[at].answer = answer;
        let expected = if ok { self.model.apply(step) } else { self.model.refused(step) };
        if ok && let Step::Single(Single::Start, target) = step {
            self.ready(*target).await;
        }
        self.events(expected).await;
        lost || last
    }

    /// Waits for the events that a call has to bring.
    async fn events(&mut self, expected: Vec<Expected>) {
        let (names, told) = (&self.names, self.told);
        let all = |events: &[_]| {
            // What nobody waited for has come before, or comes in between.
            let mut left = expected.clone();
            for event in events[told..].iter().map(|event| names.event(event)) {
                let wanted = |wanted: &Expected| wanted.process == event.process && wanted.topic == event.topic;
                if let Some(at) = left.iter().position(wanted) {
                    left.remove(at);
                }
            }
            left.is_empty()
        };
        let came = self.recorder.wait_until(EVENT * patience(), all).await;
        let events = self.recorder.events();
        let new = events[self.told..].iter().map(|event| names.event(event));
        let mut new: Vec<String> = new.map(|event| format!("{}: {}", event.process, event.text)).collect();
        self.told = events.len();
        if !came {
            new.push(format!("an event is missing after {} s", (EVENT * patience()).as_secs()));
        }
        self.lines.last_mut().unwrap().events = new;
    }

    /// Waits until a program that lives on has said that it runs.
    async fn ready(&mut self, target: Target) {
        let lives = self.model.runs(target);
        let label = target.to_string();
        let Some(streams) = self.streams.iter_mut().rev().find(|streams| streams.label == label).filter(|_| lives)
        else {
            return;
        };
        let said = async {
            loop {
                streams.stdout.readable().await.unwrap();
                // An error says that there is nothing after all.
                let _ = streams.stdout.try_read_buf(&mut streams.said);
                if streams.said.starts_with(b"ready") {
                    return;
                }
            }
        };
        if tokio::time::timeout(EVENT * patience(), said).await.is_err() {
            streams.said.extend(b"(nothing in time)");
        }
    }

    /// Looks at what is there when all calls were made: Waits, events, outputs, the shim's end.
    async fn finish(mut self) -> Vec<Line> {
        let ended = !self.model.is_there() && self.shim.ends().await;
        let deleted = self.names.without(&self.shim.delete().await);
        let mut lines = self.lines;
        // What was not answered until now is not any more.
        for waiting in self.waiting {
            lines[waiting.line].answer = match waiting.answer.await.unwrap() {
                Ok(exit) => Answer::ok(&[format!("status={}", exit.exit_status), time(&exit.exited_at)]),
                Err(cause) => self.names.error(&cause),
            };
        }
        lines.push(Line::of("end of the shim", "", if ended { "by itself" } else { "killed" }));
        lines.push(Line::of("delete of the shim", "", deleted));
        let events: Vec<Event> = self.recorder.events().iter().map(|event| self.names.event(event)).collect();
        let late = events[self.told..].iter().map(|event| format!("{}: {}", event.process, event.text)).collect();
        lines.push(Line { events: late, ..Line::of("order of events", "", order(&events)) });
        let mut processes: Vec<&str> = events.iter().map(|event| event.process.as_str()).collect();
        processes.sort_unstable();
        processes.dedup();
        for process in processes {
            let of = events.iter().filter(|event| event.process == process).map(|event| event.text.as_str());
            lines.push(Line::of("events", process, of.collect::<Vec<_>>().join(", ")));
        }
        for streams in &mut self.streams {
            streams.said.extend(read_all(&streams.stdout));
            let errors = streams.stderr.as_ref().map(read_all).unwrap_or_default();
            let text = [&streams.said, &errors].map(|bytes| digest(bytes)).join(" / ");
            lines.push(Line::of("output", streams.label.clone(), text));
            streams.names.iter().filter(|name| !name.is_empty()).for_each(|name| {
                let _ = fs::remove_file(name);
            });
        }
        let log = String::from_utf8_lossy(&read_all(&self.log)).into_owned();
        lines.push(Line { events: log.lines().map(str::to_owned).collect(), ..Line::of("log", "", "") });
        self.recorder.stop().await;
        lines
    }
}

/// A short output as it is, a long one by its length and its ends.
fn digest(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.len() <= 60 {
        return format!("{text:?}");
    }
    let (first, last): (String, String) = (text.chars().take(20).collect(), text.chars().rev().take(20).collect());
    format!("{} bytes, {first:?}..{:?}", bytes.len(), last.chars().rev().collect::<String>())
}

/// What is wrong with the order of events across processes.
fn order(events: &[Event]) -> String {
    let is = |event: &Event, process: &str, topic: &str| event.process == process && event.topic == topic;
    let mut wrong = Vec::new();
    if events.first().is_some_and(|first| !is(first, "init", "create")) {
        wrong.push("create is not the first");
    }
    let exit = events.iter().position(|event| is(event, "init", "exit"));
    if exit.is_some_and(|exit| events[exit..].iter().any(|event| event.process != "init" && event.topic == "exit")) {
        wrong.push("an exec's exit comes after the container's");
    }
    let start = events.iter().position(|event| is(event, "init", "start"));
    if exit.zip(start).is_some_and(|(exit, start)| exit < start) {
        wrong.push("the exit comes before the start");
    }
    if wrong.is_empty() { "as it has to be".to_owned() } else { wrong.join(", ") }
}
