//! The request of each step, and its answer in words.

use std::fs;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tokio::net::unix::pipe;

use super::execute::{Run, Streams, Waiting};
use super::shim::{call_limit, make_fifo, open_fifo};
use super::step::{BAD_EXEC, Change, Plain, Process, Single, Step, Target};
use super::words::{Answer, time};

/// Columns and rows that terminals get.
const SIZE: (u32, u32) = (100, 40);
/// The container that there never was.
const NOBODY: &str = "there-is-no-such-container";

impl Run<'_> {
    async fn ask<R: Message>(&self, method: &str, request: &impl Message) -> Result<R, Answer> {
        self.shim.call(method, request, call_limit()).await.map_err(|cause| self.names.error(&cause))
    }

    async fn plain(&self, method: &str, request: &impl Message) -> Answer {
        self.ask::<Empty>(method, request).await.map_or_else(|answer| answer, |_| Answer::ok(&[]))
    }

    /// Makes the call of a step.
    pub(super) async fn call(&mut self, step: &Step) -> Answer {
        let id = if step.target() == Target::Nobody { NOBODY.to_owned() } else { self.names.id.clone() };
        let exec_id = step.target().exec_id().to_owned();
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
