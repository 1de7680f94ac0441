//! One sequence against one shim.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use super::model::{Expected, Model};
use super::server::Recorder;
use super::shim::{NAMESPACE, Shim, call_limit, make_bundle, make_fifo, open_fifo, read_all};
use super::step::{BAD_EXEC, Change, Plain, Process, Program, Single, Step, Target};
use super::words::{Answer, Event, NO_ANSWER, Names, time};
use crate::host::patience;
use crate::rootfs;

/// Time for an event that has to come, and for a program to say that it runs.
const EVENT: Duration = Duration::from_secs(30);
/// Columns and rows that terminals get.
const SIZE: (u32, u32) = (100, 40);
/// The container that there never was.
const NOBODY: &str = "there-is-no-such-container";

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

/// Where sequences run: the root of their containers, their document, and a directory for everything else.
#[derive(Debug)]
pub struct Place {
    directory: TempDir,
    /// The document, without what differs.
    spec: Value,
}

impl Place {
    /// Makes one.
    ///
    /// # Panics
    /// The host refuses, or has no `ctr`.
    #[must_use]
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        rootfs::busybox(&root);
        // The document of a `ctr run`.
        let spec = Command::new("ctr").args(["oci", "spec"]).output().unwrap();
        Self { directory, spec: serde_json::from_slice(&spec.stdout).unwrap() }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn spec(&self, id: &str, process: Process) -> Value {
        let mut spec = self.spec.clone();
        spec["root"] = json!({ "path": self.path().join("root") });
        spec["linux"]["cgroupsPath"] = json!(format!("/{NAMESPACE}/{id}"));
        spec["process"] = self.process(process);
        spec
    }

    fn process(&self, process: Process) -> Value {
        let mut spec = self.spec["process"].clone();
        spec["args"] = json!(process.program.args());
        spec["env"] = json!(["PATH=/bin"]);
        spec["terminal"] = json!(process.terminal);
        spec
    }
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What the first container of a namespace makes, if it is empty.
        for path in [format!("/sys/fs/cgroup/{NAMESPACE}"), format!("/run/containerd/runc/{NAMESPACE}")] {
            let _ = fs::remove_dir(path);
        }
    }
}

/// The ends of a process's streams that the caller has.
struct Streams {
    label: String,
    stdin: Option<OwnedFd>,
    stdout: pipe::Receiver,
    stderr: Option<OwnedFd>,
    said: Vec<u8>,
    names: [String; 3],
}

/// A Wait that was asked and that nobody has looked at since.
struct Waiting {
    line: usize,
    answer: JoinHandle<ttrpc::Result<WaitResponse>>,
}

struct Run<'a> {
    place: &'a Place,
    bundle: PathBuf,
    shim: Shim,
    log: OwnedFd,
    recorder: Recorder,
    model: Model,
    names: Names,
    streams: Vec<Streams>,
    /// How many have been asked for.
    processes: usize,
    waiting: Vec<Waiting>,
    lines: Vec<Line>,
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

/// What a container may have left.
fn left(id: &str) -> String {
    let mut left = Vec::new();
    let cgroup = format!("/sys/fs/cgroup/{NAMESPACE}/{id}");
    let husk = format!("/sys/fs/cgroup/{NAMESPACE}/husk-{id}");
    let state = format!("/run/containerd/runc/{NAMESPACE}/{id}");
    left.extend([cgroup, husk, state].into_iter().filter(|path| Path::new(path).exists()));
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap().lines().filter(|line| line.contains(id)) {
        left.push(format!("mount {line}"));
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let own = entry.file_name().to_str() == Some(&std::process::id().to_string());
        if command.contains(id) && !own {
            left.push(format!("process {command}"));
        }
    }
    if left.is_empty() { "nothing".to_owned() } else { left.join("; ").replace(id, "<id>") }
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
        let (call, target) = (call_of(step), target_of(step));
        let state = self.model.state(target).to_string();
        let line = Line {
            call,
            target: step.to_string(),
            state,
            answer: Answer::default(),
            events: Vec::new(),
        };
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

    fn make_streams(&mut self, label: &str, process: Process) -> [String; 3] {
        self.processes += 1;
        let path = |name: &str| self.bundle.join(format!("{}-{name}", self.processes));
        let open = |name: &str, wanted: bool| {
            let path = path(name);
            wanted.then(|| {
                make_fifo(&path);
                (open_fifo(&path), path.to_str().unwrap().to_owned())
            })
        };
        let (stdin, stdin_name) = open("stdin", process.stdin).unzip();
        let (stdout, stdout_name) = open("stdout", true).unzip();
        let (stderr, stderr_name) = open("stderr", !process.terminal).unzip();
        let names = [stdin_name, stdout_name, stderr_name].map(Option::unwrap_or_default);
        let stdout = pipe::Receiver::from_owned_fd_unchecked(stdout.unwrap()).unwrap();
        let streams =
            Streams { label: label.to_owned(), stdin, stdout, stderr, said: Vec::new(), names: names.clone() };
        self.streams.push(streams);
        names
    }

    async fn ask<R: Message>(&self, method: &str, request: &impl Message) -> Result<R, Answer> {
        self.shim.call(method, request, call_limit()).await.map_err(|cause| self.names.error(&cause))
    }

    async fn plain(&self, method: &str, request: &impl Message) -> Answer {
        self.ask::<Empty>(method, request).await.map_or_else(|answer| answer, |_| Answer::ok(&[]))
    }

    async fn call(&mut self, step: &Step) -> Answer {
        let id = if target_of(step) == Target::Nobody { NOBODY.to_owned() } else { self.names.id.clone() };
        let exec_id = target_of(step).exec_id().to_owned();
        match *step {
            Step::Create(process) => self.create(id, process).await,
            Step::Exec(n, process) => self.exec(id, n.map_or(Target::NoExec, Target::Exec), process).await,
            Step::Single(call, target) => self.single(call, target, id, exec_id).await,
            Step::Kill(_, signal, all) => {
                self.plain("Kill", &KillRequest { id, exec_id, signal, all, ..KillRequest::default() }).await
            }
            Step::CloseIo(target, own) => {
                if own {
                    let label = target.to_string();
                    if let Some(streams) = self.streams.iter_mut().rev().find(|streams| streams.label == label) {
                        streams.stdin = None;
                    }
                }
                self.plain("CloseIO", &CloseIORequest { id, exec_id, stdin: true, ..CloseIORequest::default() }).await
            }
            Step::Plain(call, target) => self.about_container(call, target, id).await,
            Step::Update(_, change) => {
                let resources = resources(change);
                self.plain("Update", &UpdateTaskRequest { id, resources, ..UpdateTaskRequest::default() }).await
            }
            Step::Shutdown => self.plain("Shutdown", &ShutdownRequest { id, ..ShutdownRequest::default() }).await,
        }
    }

    async fn create(&mut self, id: String, process: Process) -> Answer {
        // Another one than the first has another document.
        if !self.model.is_there() {
            fs::write(self.bundle.join("config.json"), self.place.spec(&id, process).to_string()).unwrap();
        }
        let [stdin, stdout, stderr] = self.make_streams("init", process);
        let request = CreateTaskRequest {
            id,
            bundle: self.names.bundle.clone(),
            terminal: process.terminal,
            stdin,
            stdout,
            stderr,
            ..CreateTaskRequest::default()
        };
        match self.ask::<CreateTaskResponse>("Create", &request).await {
            Ok(created) => {
                self.names.pids.insert(created.pid, "init".to_owned());
                Answer::ok(&[self.names.pid(created.pid, "init")])
            }
            Err(answer) => {
                self.streams.pop();
                answer
            }
        }
    }

    async fn exec(&mut self, id: String, target: Target, process: Process) -> Answer {
        let exec_id = if target == Target::NoExec { BAD_EXEC } else { target.exec_id() };
        let [stdin, stdout, stderr] = self.make_streams(exec_id, process);
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
            value: self.place.process(process).to_string().into_bytes(),
            ..Any::default()
        };
        let request = ExecProcessRequest {
            id,
            exec_id: exec_id.to_owned(),
            terminal: process.terminal,
            stdin,
            stdout,
            stderr,
            spec: MessageField::some(spec),
            ..ExecProcessRequest::default()
        };
        let answer = self.plain("Exec", &request).await;
        if !answer.is_ok() {
            self.streams.pop();
        }
        answer
    }

    async fn single(&mut self, call: Single, target: Target, id: String, exec_id: String) -> Answer {
        let own = target.to_string();
        match call {
            Single::Start => {
                let request = StartRequest { id, exec_id, ..StartRequest::default() };
                match self.ask::<StartResponse>("Start", &request).await {
                    Ok(started) => {
                        self.names.pids.entry(started.pid).or_insert_with(|| own.clone());
                        Answer::ok(&[self.names.pid(started.pid, &own)])
                    }
                    Err(answer) => answer,
                }
            }
            Single::State => {
                let request = StateRequest { id, exec_id: exec_id.clone(), ..StateRequest::default() };
                let state = self.ask::<StateResponse>("State", &request).await;
                state.map_or_else(|answer| answer, |state| self.names.state(&state, &own, &exec_id))
            }
            Single::Wait => {
                let request = WaitRequest { id: id.clone(), exec_id, ..WaitRequest::default() };
                // It may take as long as the sequence.
                let call = self.shim.call("Wait", &request, call_limit() * 100);
                self.waiting.push(Waiting { line: self.lines.len() - 1, answer: tokio::spawn(call) });
                // The shim has it before it gets the next call: this one comes behind it.
                tokio::task::yield_now().await;
                let _ = self.plain("Connect", &ConnectRequest { id, ..ConnectRequest::default() }).await;
                Answer::ok(&[])
            }
            Single::Resize => {
                let (width, height) = SIZE;
                self.plain("ResizePty", &ResizePtyRequest { id, exec_id, width, height, ..ResizePtyRequest::default() })
                    .await
            }
            Single::Delete => self.delete(&own, &DeleteRequest { id, exec_id, ..DeleteRequest::default() }).await,
            Single::DeleteTwice => {
                let request = DeleteRequest { id, exec_id, ..DeleteRequest::default() };
                let (one, other) = tokio::join!(self.delete(&own, &request), self.delete(&own, &request));
                // Which comes first is nobody's promise.
                let mut both = [one, other];
                both.sort_by_key(|answer| !answer.is_ok());
                let words = both.iter().map(|answer| answer.words.as_str()).collect::<Vec<_>>().join(" / ");
                Answer { text: format!("{} / {}", both[0].text, both[1].text), words }
            }
        }
    }

    async fn delete(&self, own: &str, request: &DeleteRequest) -> Answer {
        let deleted = self.ask::<DeleteResponse>("Delete", request).await;
        deleted.map_or_else(
            |answer| answer,
            |deleted| {
                let status = format!("status={}", deleted.exit_status);
                Answer::ok(&[self.names.pid(deleted.pid, own), status, time(&deleted.exited_at)])
            },
        )
    }

    async fn about_container(&self, call: Plain, target: Target, id: String) -> Answer {
        let answered = match call {
            Plain::Pids => {
                let request = PidsRequest { id, ..PidsRequest::default() };
                self.ask::<PidsResponse>("Pids", &request).await.map(|pids| self.names.processes(&pids))
            }
            Plain::Stats => {
                let request = StatsRequest { id, ..StatsRequest::default() };
                let runs = self.model.runs(target);
                self.ask::<StatsResponse>("Stats", &request).await.map(|stats| self.names.stats(&stats, runs))
            }
            Plain::Connect => {
                let request = ConnectRequest { id, ..ConnectRequest::default() };
                let answer = self.ask::<ConnectResponse>("Connect", &request).await;
                answer.map(|answer| Answer::ok(&[self.names.pid(answer.task_pid, "init")]))
            }
            Plain::Pause => Ok(self.plain("Pause", &PauseRequest { id, ..PauseRequest::default() }).await),
            Plain::Resume => Ok(self.plain("Resume", &ResumeRequest { id, ..ResumeRequest::default() }).await),
            Plain::Checkpoint => {
                let path = self.bundle.join("checkpoint").to_str().unwrap().to_owned();
                let request = CheckpointTaskRequest { id, path, ..CheckpointTaskRequest::default() };
                Ok(self.plain("Checkpoint", &request).await)
            }
        };
        answered.unwrap_or_else(|answer| answer)
    }

    /// Looks at what is there when all calls were made: Waits, events, outputs, the shim's end.
    async fn finish(mut self) -> Vec<Line> {
        let ended = !self.model.is_there() && self.shim.ends().await;
        let mut lines = self.lines;
        for waiting in self.waiting {
            let own = lines[waiting.line].target.trim_start_matches("wait ").to_owned();
            lines[waiting.line].answer = match tokio::time::timeout(EVENT, waiting.answer).await {
                Ok(Ok(Ok(exit))) => Answer::ok(&[format!("status={}", exit.exit_status), time(&exit.exited_at)]),
                Ok(Ok(Err(cause))) => self.names.error(&cause),
                _ => Answer { text: NO_ANSWER.to_owned(), words: format!("{own} has not ended") },
            };
        }
        lines.push(Line::of("end of the shim", "", if ended { "by itself" } else { "killed" }));
        lines.push(Line::of("delete of the shim", "", self.shim.delete().await));
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

fn resources(change: Change) -> MessageField<Any> {
    let document = match change {
        Change::Empty => "{}",
        Change::Memory => r#"{"memory":{"limit":268435456}}"#,
        Change::Pids => r#"{"pids":{"limit":100}}"#,
        Change::Cpu => r#"{"cpu":{"shares":512}}"#,
        Change::Garbage => "no document",
    };
    MessageField::some(Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
        value: document.as_bytes().to_vec(),
        ..Any::default()
    })
}

fn target_of(step: &Step) -> Target {
    match *step {
        Step::Create(_) | Step::Shutdown => Target::Init,
        Step::Exec(n, _) => n.map_or(Target::NoExec, Target::Exec),
        Step::Single(_, target)
        | Step::Kill(target, ..)
        | Step::CloseIo(target, _)
        | Step::Plain(_, target)
        | Step::Update(target, _) => target,
    }
}

/// The call's word, without what it is about.
fn call_of(step: &Step) -> String {
    step.to_string().split_whitespace().next().unwrap_or_default().to_owned()
}
