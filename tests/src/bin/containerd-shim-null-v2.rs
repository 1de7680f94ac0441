//! The null shim: answers containerd's calls at once and runs nothing. `make bench` measures it beside the others: what it
//! takes is what `ctr` and containerd take, whatever the runtime. Nothing installs it.
//!
//! It keeps the contract: its task has a pid of its own, which is gone before the exit is told, and events come in their
//! order. It opens and closes the outputs, so that their reader sees an end. Its container "runs" from Start to the next moment, prints nothing and ends with status 0; one that could print
//! nowhere stays until it is killed, for execs, which "run" as containers do.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty,
    ExecProcessRequest, KillRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskStart,
};
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::types::task::Status;
use futures_util::stream::poll_fn;
use husk_shim::args::{Arguments, Verb};
use husk_shim::daemon::{Inherited, services};
use husk_shim::events::Publisher;
use husk_shim::{VERSION, delete, start};
use protobuf::MessageField;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// Time for containerd to take the last events; it waits 3 s for Shutdown.
const FLUSH: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let mut words = std::env::args();
    let name = words.next().unwrap_or_default();
    let words: Vec<String> = words.collect();
    let result = Arguments::parse(&words).map_err(|cause| cause.to_string()).and_then(|arguments| {
        match arguments.verb {
            Verb::Version => {
                println!("{name}:\n  Version: {VERSION}");
                Ok(())
            }
            Verb::Start => start::run(&arguments, &name, shim).map_err(|cause| cause.to_string()),
            Verb::Info => Err("the null shim has no information".to_owned()),
            // There is never anything to remove, so it does what husk's does then: it answers.
            Verb::Delete => delete::run(&arguments).map_err(|cause| cause.to_string()),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            eprintln!("null shim: {cause}");
            ExitCode::FAILURE
        }
    }
}

/// The fork of `start`. It has no log: who looks for its words runs it by hand.
fn shim(arguments: &Arguments, inherited: Inherited) {
    let socket = inherited.socket.clone();
    let _ = serve(arguments, inherited);
    let _ = std::fs::remove_file(socket);
}

fn serve(arguments: &Arguments, inherited: Inherited) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        // There is nothing to name.
        inherited.named.ready();
        let publisher = Publisher::start(arguments.namespace.clone(), inherited.events);
        let null = Arc::new(Null {
            publisher,
            life: watch::Sender::new(Life::Nothing),
            execs: watch::Sender::default(),
            outputs: Mutex::default(),
            stays: AtomicBool::new(false),
            end: Notify::new(),
        });
        inherited.listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(inherited.listener)?;
        let connections = poll_fn(move |context| listener.poll_accept(context).map(|new| Some(new.map(|(s, _)| s))));
        let services = services(Arc::<Null>::clone(&null));
        let mut server = Server::new().add_listener(Listener::new(connections)).register_service(services);
        server.start().await.map_err(io::Error::other)?;
        // containerd reads both outputs to their end before it goes on.
        let null_device = File::options().write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdout(&null_device)?;
        rustix::stdio::dup2_stderr(&null_device)?;
        null.end.notified().await;
        server.shutdown().await.map_err(io::Error::other)
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Nothing,
    Created(Pid),
    Running(Pid),
    Stopped(Pid, SystemTime),
}

impl Life {
    fn pid(self) -> u32 {
        match self {
            Self::Nothing => 0,
            Self::Created(pid) | Self::Running(pid) | Self::Stopped(pid, _) => {
                pid.as_raw_nonzero().get().cast_unsigned()
            }
        }
    }
}

/// Names of fifos: standard output and standard error.
#[derive(Clone, Default)]
struct Outputs(String, String);

impl Outputs {
    /// What a reader sees of a program that prints nothing.
    fn end(&self) {
        for path in [&self.0, &self.1] {
            if !path.is_empty() {
                // Nobody reads: nobody sees it.
                drop(File::options().write(true).custom_flags(libc::O_NONBLOCK).open(path));
            }
        }
    }
}

#[derive(Clone, Default)]
struct Exec {
    outputs: Outputs,
    ended: Option<SystemTime>,
}

struct Null {
    publisher: Publisher,
    life: watch::Sender<Life>,
    /// Those that were added.
    execs: watch::Sender<HashMap<String, Exec>>,
    /// The container's.
    outputs: Mutex<Outputs>,
    /// The container stays until it is killed.
    stays: AtomicBool,
    end: Notify,
}

fn wrong(what: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::FAILED_PRECONDITION, what))
}

/// A process that does nothing: the task's pid.
fn idle_process() -> io::Result<Pid> {
    // SAFETY: this process has one thread, so that the child may do whatever the parent might.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // The shim's death must not leave it behind; pausing is all that it does.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        loop {
            // SAFETY: takes nothing, touches no memory.
            unsafe { libc::pause() };
        }
    }
    Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(io::Error::last_os_error)
}

impl Null {
    /// Ends the task.
    fn stop(&self, id: &str, status: u32) -> ttrpc::Result<()> {
        let life = *self.life.borrow();
        let (Life::Created(process) | Life::Running(process)) = life else { return Err(wrong("it does not run")) };
        kill_process(process, Signal::KILL).map_err(wrong)?;
        waitpid(Some(process), WaitOptions::empty()).map_err(wrong)?;
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner).end();
        let at = SystemTime::now();
        self.exited(id, id, life.pid(), status, at);
        self.life.send_replace(Life::Stopped(process, at));
        Ok(())
    }

    /// "Runs" an exec: returns its pid, which is the task's.
    fn run_exec(&self, id: &str, exec_id: &str) -> ttrpc::Result<u32> {
        let pid = self.life.borrow().pid();
        self.publisher.publish(&TaskExecStarted {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            pid,
            ..TaskExecStarted::default()
        });
        let exec = self.execs.borrow().get(exec_id).cloned().ok_or_else(|| wrong("there is no such exec"))?;
        exec.outputs.end();
        let at = SystemTime::now();
        self.exited(id, exec_id, pid, 0, at);
        self.execs.send_modify(|execs| {
            execs.insert(exec_id.to_owned(), Exec { ended: Some(at), ..exec });
        });
        Ok(pid)
    }

    fn exited(&self, container_id: &str, id: &str, pid: u32, exit_status: u32, at: SystemTime) {
        self.publisher.publish(&TaskExit {
            container_id: container_id.to_owned(),
            id: id.to_owned(),
            pid,
            exit_status,
            exited_at: MessageField::some(at.into()),
            ..TaskExit::default()
        });
    }
}

#[async_trait]
impl Task for Null {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        if *self.life.borrow() != Life::Nothing {
            return Err(wrong("there is a task already"));
        }
        let created = Life::Created(idle_process().map_err(wrong)?);
        self.life.send_replace(created);
        self.stays.store(request.stdout().is_empty(), Ordering::Relaxed);
        *self.outputs.lock().unwrap_or_else(PoisonError::into_inner) =
            Outputs(request.stdout().to_owned(), request.stderr().to_owned());
        let pid = created.pid();
        self.publisher.publish(&TaskCreate {
            container_id: request.id().to_owned(),
            bundle: request.bundle,
            rootfs: request.rootfs,
            pid,
            ..TaskCreate::default()
        });
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let life = *self.life.borrow();
        if !request.exec_id().is_empty() {
            let pid = self.run_exec(request.id(), request.exec_id())?;
            return Ok(StartResponse { pid, ..StartResponse::default() });
        }
        let Life::Created(process) = life else { return Err(wrong("there is no task to start")) };
        let pid = life.pid();
        self.life.send_replace(Life::Running(process));
        self.publisher.publish(&TaskStart { container_id: request.id().to_owned(), pid, ..TaskStart::default() });
        if !self.stays.load(Ordering::Relaxed) {
            self.stop(request.id(), 0)?;
        }
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.execs.send_modify(|execs| {
            let outputs = Outputs(request.stdout().to_owned(), request.stderr().to_owned());
            execs.insert(request.exec_id().to_owned(), Exec { outputs, ended: None });
        });
        self.publisher.publish(&TaskExecAdded {
            container_id: request.id().to_owned(),
            exec_id: request.exec_id().to_owned(),
            ..TaskExecAdded::default()
        });
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        self.stop(request.id(), 137)?;
        Ok(Empty::new())
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let life = *self.life.borrow();
        let exec = self.execs.borrow().get(request.exec_id()).map(|exec| exec.ended);
        let (status, exited_at) = match (life, exec) {
            (_, Some(Some(at))) | (Life::Stopped(_, at), None) => (Status::STOPPED, MessageField::some(at.into())),
            (Life::Nothing, _) => (Status::UNKNOWN, MessageField::none()),
            (_, Some(None)) | (Life::Created(_), None) => (Status::CREATED, MessageField::none()),
            _ => (Status::RUNNING, MessageField::none()),
        };
        let id = request.id().to_owned();
        Ok(StateResponse { id, pid: life.pid(), status: status.into(), exited_at, ..StateResponse::default() })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        // `self` has the senders.
        let at = if request.exec_id().is_empty() {
            let mut life = self.life.subscribe();
            match *life.wait_for(|life| matches!(life, Life::Stopped(..))).await.map_err(wrong)? {
                Life::Stopped(_, at) => at,
                _ => return Err(wrong("it has not ended")),
            }
        } else {
            let mut execs = self.execs.subscribe();
            let ended = |execs: &HashMap<String, Exec>| execs.get(request.exec_id()).and_then(|exec| exec.ended);
            let execs = execs.wait_for(|execs| ended(execs).is_some()).await.map_err(wrong)?;
            ended(&execs).ok_or_else(|| wrong("it has not ended"))?
        };
        Ok(WaitResponse { exited_at: MessageField::some(at.into()), ..WaitResponse::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let life = *self.life.borrow();
        let pid = life.pid();
        if !request.exec_id().is_empty() {
            let mut ended = None;
            self.execs.send_modify(|execs| ended = execs.remove(request.exec_id()).and_then(|exec| exec.ended));
            let at = ended.ok_or_else(|| wrong("there is no such exec that has ended"))?;
            return Ok(DeleteResponse { pid, exited_at: MessageField::some(at.into()), ..DeleteResponse::default() });
        }
        let Life::Stopped(_, at) = life else { return Err(wrong("it has not ended")) };
        let answer = DeleteResponse { pid, exited_at: MessageField::some(at.into()), ..DeleteResponse::default() };
        self.publisher.publish(&TaskDelete {
            container_id: request.id().to_owned(),
            pid,
            exited_at: answer.exited_at.clone(),
            ..TaskDelete::default()
        });
        Ok(answer)
    }

    async fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let task_pid = self.life.borrow().pid();
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: VERSION.to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        self.publisher.flush(FLUSH).await;
        self.end.notify_one();
        Ok(Empty::new())
    }
}
