//! The calls of the interface, for [`Life`].

use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use protobuf::MessageField;
use ttrpc::asynchronous::TtrpcContext;

use super::container::{Container, Phase};
use super::error::{Result, TaskError};
use super::life::Life;
use super::pod::Pod;
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

    /// The container, or one of its execs, of which there are none yet.
    fn process(&self, id: &str, exec_id: &str) -> Result<Arc<Container>> {
        let container = self.life.container(id)?;
        if exec_id.is_empty() { Ok(container) } else { Err(TaskError::NotFound(format!("{id}, exec {exec_id}"))) }
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

    /// What is not built yet, for a container that is here.
    fn not_yet<T>(&self, id: &str, what: &'static str) -> ttrpc::Result<T> {
        self.life.container(id)?;
        Err(TaskError::NotYet(what).into())
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
        self.process(request.id(), request.exec_id())?;
        let life = Arc::clone(&self.life);
        let pid = Self::whole(async move { life.start(request.id()).await }).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    /// Never waits for a lock that another call holds while it waits.
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.process(request.id(), request.exec_id())?;
        let phase = container.phase();
        let mut state = StateResponse {
            id: container.id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: container.stub.pid(),
            status: phase.status().into(),
            stdin: container.names.stdin.clone(),
            stdout: container.names.stdout.clone(),
            stderr: container.names.stderr.clone(),
            terminal: container.names.terminal,
            ..StateResponse::default()
        };
        if let Phase::Stopped(exit) = phase {
            state.exit_status = exit.status;
            state.exited_at = MessageField::some(exit.at.into());
        }
        Ok(state)
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        self.process(request.id(), request.exec_id())?;
        let life = Arc::clone(&self.life);
        Self::whole(async move { life.kill(request.id(), request.signal, request.all).await }).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let exit = self.process(request.id(), request.exec_id())?.exit().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.into()),
            ..WaitResponse::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        if !request.exec_id().is_empty() {
            self.process(request.id(), request.exec_id())?;
        }
        let life = Arc::clone(&self.life);
        Ok(Self::whole(async move { life.delete(request.id()).await }).await?)
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.life.container(request.id())?;
        let process = ProcessInfo { pid: container.stub.pid(), ..ProcessInfo::default() };
        Ok(PidsResponse { processes: vec![process], ..PidsResponse::default() })
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
        let container = self.process(request.id(), request.exec_id())?;
        if request.stdin {
            container.stdio.close_stdin();
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
        self.not_yet(request.id(), "run a second process in a container (exec)")
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        self.not_yet(request.id(), "give a container a terminal")
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        self.not_yet(request.id(), "pause a container")
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        self.not_yet(request.id(), "resume a container")
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        self.not_yet(request.id(), "change a container's limits")
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        self.not_yet(request.id(), "tell a container's use of resources")
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        self.not_yet(request.id(), "checkpoint a container")
    }
}
