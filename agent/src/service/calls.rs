//! The calls of the protocol, for [`Service`]: a table.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use husk_protocol::agent::{
    Agent, CreateContainerRequest, CreateContainerResponse, CreateSandboxRequest, CreateSandboxResponse,
    DestroySandboxRequest, DestroySandboxResponse, ExecRequest, ExecResponse, ForwardRequest, ForwardResponse,
    FreezeRequest, FreezeResponse, HealthRequest, HealthResponse, NextEventsRequest, NextEventsResponse,
    ProcessesRequest, ProcessesResponse, RemoveContainerRequest, RemoveContainerResponse, ResizeTerminalRequest,
    ResizeTerminalResponse, SetNetworkRequest, SetNetworkResponse, SignalRequest, SignalResponse,
    StartContainerRequest, StartContainerResponse, StatsRequest, StatsResponse, UpdateContainerRequest,
    UpdateContainerResponse,
};
use husk_protocol::version;
use protobuf::MessageField;
use ttrpc::asynchronous::TtrpcContext;

use super::{Service, ServiceError};
use crate::boot;
use crate::forward::forward;
use crate::vsock::Dial;

/// The calls of the protocol, for [`Service`].
pub(super) struct Calls<D>(pub(super) Arc<Service<D>>);

impl<D> std::ops::Deref for Calls<D> {
    type Target = Service<D>;

    fn deref(&self) -> &Service<D> {
        &self.0
    }
}

/// Runs work in a task of its own: ttrpc drops a handler when its caller's time is over, at whatever it waits for.
async fn whole<T: Send + 'static>(
    what: &'static str,
    work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
) -> Result<T, ServiceError> {
    tokio::spawn(work).await.map_err(|cause| ServiceError::Guest { what, cause: cause.into() })?
}

#[async_trait]
impl<D: Dial> Agent for Calls<D> {
    async fn health(&self, _: &TtrpcContext, _: HealthRequest) -> ttrpc::Result<HealthResponse> {
        Ok(HealthResponse {
            protocol_major: version::MAJOR,
            protocol_minor: version::MINOR,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            ready_ns: self.times.ready_ns,
            init_tsc: self.times.init_tsc,
            ..Default::default()
        })
    }

    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.sandbox(request).await?;
        Ok(CreateSandboxResponse::default())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let service = Arc::clone(&self.0);
        let pid = whole("make the container", async move { service.create(request).await }).await?;
        Ok(CreateContainerResponse { pid, ..Default::default() })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        let container = self.container(&request.id)?;
        let started = container.start().await;
        started.map_err(|cause| ServiceError::Container { id: request.id, cause })?;
        Ok(StartContainerResponse::default())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<ExecResponse> {
        let service = Arc::clone(&self.0);
        let pid = whole("make the process", async move { service.exec(request).await }).await?;
        Ok(ExecResponse { pid, ..Default::default() })
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<ResizeTerminalResponse> {
        self.resize(&request)?;
        Ok(ResizeTerminalResponse::default())
    }

    async fn freeze(&self, _: &TtrpcContext, request: FreezeRequest) -> ttrpc::Result<FreezeResponse> {
        let frozen = self.container(&request.id)?.cgroup().freeze(request.frozen).await;
        frozen.map_err(|cause| ServiceError::Cgroup { id: request.id, cause })?;
        Ok(FreezeResponse::default())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        self.update(&request)?;
        Ok(UpdateContainerResponse::default())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let stats = self.container(&request.id)?.cgroup().stats();
        Ok(StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn processes(&self, _: &TtrpcContext, request: ProcessesRequest) -> ttrpc::Result<ProcessesResponse> {
        let processes = self.processes_of(&request.id)?;
        Ok(ProcessesResponse { processes, ..Default::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<SignalResponse> {
        self.send_signal(&request)?;
        Ok(SignalResponse::default())
    }

    async fn next_events(&self, _: &TtrpcContext, request: NextEventsRequest) -> ttrpc::Result<NextEventsResponse> {
        let wait = (request.wait_ms > 0).then(|| Duration::from_millis(request.wait_ms));
        Ok(self.events.next(request.after_seq, request.max, wait).await)
    }

    async fn remove_container(
        &self,
        _: &TtrpcContext,
        request: RemoveContainerRequest,
    ) -> ttrpc::Result<RemoveContainerResponse> {
        self.remove(&request.id).await?;
        Ok(RemoveContainerResponse::default())
    }

    async fn set_network(&self, _: &TtrpcContext, request: SetNetworkRequest) -> ttrpc::Result<SetNetworkResponse> {
        let service = Arc::clone(&self.0);
        let warnings = whole("set the network", async move { service.network(request).await }).await?;
        Ok(SetNetworkResponse { warnings, ..Default::default() })
    }

    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<ForwardResponse> {
        forward(&request, &self.dial).await.map_err(ServiceError::from)?;
        Ok(ForwardResponse::default())
    }

    async fn destroy_sandbox(
        &self,
        _: &TtrpcContext,
        _: DestroySandboxRequest,
    ) -> ttrpc::Result<DestroySandboxResponse> {
        self.remove_all().await?;
        rustix::fs::sync();
        if *self.shares.lock().unwrap_or_else(PoisonError::into_inner) {
            boot::unmount_shares().map_err(ServiceError::from)?;
        }
        // The answer first: the reset ends the connection.
        tokio::spawn(async {
            tokio::task::yield_now().await;
            boot::restart();
        });
        Ok(DestroySandboxResponse::default())
    }
}
