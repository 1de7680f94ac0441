//! The calls of the interface, for [`Life`].

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse,
    StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use protobuf::MessageField;
use ttrpc::asynchronous::TtrpcContext;

use super::container::{Container, Exec};
use super::error::{Result, TaskError};
use super::life::Life;
use super::pod::Pod;
use super::process::Process;
use super::stats;
use crate::VERSION;

/// The task service of one pod.
pub struct TaskService {
    life: Arc<Life>,
}

impl TaskService {
    /// A service for `pod`.
    #[must_use]
    pub fn new(pod: Arc<Pod>) -> Self {
        Self { life: Life::new(pod) }
    }

    /// Waits for a Shutdown that counts.
    pub async fn shut_down(&self) {
        self.life.shut_down().await;
    }

    /// Waits until somebody asks for a container, if nobody has yet.
    pub async fn is_asked(&self) {
        self.life.is_asked().await;
    }

    /// Ends all containers and tells their exits.
    pub async fn end(&self) {
        self.life.end().await;
    }

    /// The process that a call means: a container's init, or one of its execs.
    fn process(&self, id: &str, exec_id: &str) -> Result<Target> {
        if exec_id.is_empty() {
            return Ok(Target { container: self.life.container(id)?, exec: None });
        }
        let (container, exec) = self.life.exec(id, exec_id)?;
        Ok(Target { container, exec: Some(exec) })
    }

    /// Runs work that must not stop half-way in a task of its own: ttrpc drops a handler when its caller's time is over
    /// or its connection ends, at whatever it waits for.
    async fn whole<T, F>(work: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        tokio::spawn(work).await.unwrap_or(Err(TaskError::Aborted))
    }
}

/// A container's init, or one of its execs.
struct Target {
    container: Arc<Container>,
    exec: Option<Arc<Exec>>,
}

impl Target {
    fn process(&self) -> &Process {
        self.exec.as_ref().map_or(&self.container.init, |exec| &exec.process)
    }

    fn pid(&self) -> u32 {
        self.exec.as_ref().map_or_else(|| self.container.stub.pid(), |exec| exec.pid())
    }
}

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let life = Arc::clone(&self.life);
        let pid = Self::whole(async move { life.create(request).await }).await?;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let life = Arc::clone(&self.life);
        let pid = Self::whole(async move {
            match request.exec_id() {
                "" => life.start(request.id()).await,
                exec => life.start_exec(request.id(), exec).await,
            }
        })
        .await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    /// Never waits for a lock that another call holds while it waits.
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let target = self.process(request.id(), request.exec_id())?;
        let (container, process) = (&target.container, target.process());
        let mut state = StateResponse {
            // Of an exec its own, as runc's shim has it.
            id: target.exec.as_ref().map_or_else(|| container.id.clone(), |exec| exec.id.clone()),
            bundle: container.bundle.display().to_string(),
            pid: target.pid(),
            status: container.status(process).into(),
            stdin: process.names.stdin.clone(),
            stdout: process.names.stdout.clone(),
            stderr: process.names.stderr.clone(),
            terminal: process.names.terminal,
            ..StateResponse::default()
        };
        if let Some(exit) = process.has_ended() {
            state.exit_status = exit.status;
            state.exited_at = MessageField::some(exit.at.into());
        }
        Ok(state)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let life = Arc::clone(&self.life);
        Self::whole(async move {
            match request.exec_id() {
                "" => life.kill(request.id(), request.signal, request.all).await,
                exec => life.kill_exec(request.id(), exec, request.signal).await,
            }
        })
        .await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let exit = self.process(request.id(), request.exec_id())?.process().exit().await;
        Ok(WaitResponse {
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| exit.at.into()).into(),
            ..WaitResponse::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let life = Arc::clone(&self.life);
        let answer = Self::whole(async move {
            match request.exec_id() {
                "" => life.delete(request.id()).await,
                exec => life.delete_exec(request.id(), exec).await,
            }
        });
        Ok(answer.await?)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let processes = self.life.pids(request.id()).await?;
        Ok(PidsResponse { processes, ..PidsResponse::default() })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let container = self.life.container(request.id())?;
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: container.stub.pid(),
            version: VERSION.to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let target = self.process(request.id(), request.exec_id())?;
        if request.stdin {
            target.process().close_stdin();
        }
        Ok(Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        let life = Arc::clone(&self.life);
        Self::whole(async move {
            life.end_if_empty().await;
            Ok(())
        })
        .await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.life.add_exec(&request)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let target = self.process(request.id(), request.exec_id())?;
        self.life.resize(&target.container, target.exec.as_ref(), request.width, request.height).await?;
        Ok(Empty::new())
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let life = Arc::clone(&self.life);
        Self::whole(async move { life.pause(request.id()).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let life = Arc::clone(&self.life);
        Self::whole(async move { life.resume(request.id()).await }).await?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        self.life.update(request.id(), &request.resources).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let metrics = self.life.stats(request.id()).await?;
        let stats = stats::packed(&metrics).map_err(|_| TaskError::Aborted)?;
        Ok(StatsResponse { stats: MessageField::some(stats), ..StatsResponse::default() })
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let id = self.life.container(request.id())?.id.clone();
        Err(TaskError::Unsupported { id, what: "checkpoint a container" }.into())
    }
}
