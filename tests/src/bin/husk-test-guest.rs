//! Pid 1 of a guest that misbehaves, in the agent's place: `test_guest=<how>` on the kernel's command line says how.
#![allow(clippy::panic, reason = "the end of pid 1 is a panic of the guest's kernel, which is what is wanted then")]

use std::process::ExitCode;

use async_trait::async_trait;
use futures_util::StreamExt;
use husk_agent::console::last_words;
use husk_agent::vsock::dial;
use husk_protocol::agent::{
    Agent, CreateContainerRequest, CreateContainerResponse, CreateSandboxRequest, CreateSandboxResponse, ExecRequest,
    ExecResponse, FreezeRequest, FreezeResponse, HealthRequest, HealthResponse, NextEventsRequest, NextEventsResponse,
    ProcessesRequest, ProcessesResponse, SignalRequest, SignalResponse, StartContainerRequest, StartContainerResponse,
    StatsRequest, StatsResponse, UpdateContainerRequest, UpdateContainerResponse, create_agent,
};
use husk_protocol::streams::RPC_PORT;
use husk_protocol::version;
use rustix::system::{RebootCommand, reboot};
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// What it does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Never dials the host.
    Silent,
    /// Powers off.
    Halt,
    /// Speaks another protocol.
    OtherMajor,
    /// Ends while a container is made.
    DiesInCreate,
    /// Never answers Create.
    HangsInCreate,
    /// Says that the container is made and runs, and then no more.
    HangsAfterStart,
}

/// The agent that is none.
struct Guest(How);

#[async_trait]
impl Agent for Guest {
    async fn health(&self, _: &TtrpcContext, _: HealthRequest) -> ttrpc::Result<HealthResponse> {
        let protocol_major = version::MAJOR + u32::from(self.0 == How::OtherMajor);
        Ok(HealthResponse { protocol_major, agent_version: "9.9.9".to_owned(), ..HealthResponse::default() })
    }

    async fn create_sandbox(&self, _: &TtrpcContext, _: CreateSandboxRequest) -> ttrpc::Result<CreateSandboxResponse> {
        Ok(CreateSandboxResponse::new())
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        _: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        match self.0 {
            How::DiesInCreate => std::process::exit(3),
            How::HangsAfterStart => Ok(CreateContainerResponse { pid: 2, ..CreateContainerResponse::default() }),
            _ => hang().await,
        }
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: StartContainerRequest,
    ) -> ttrpc::Result<StartContainerResponse> {
        Ok(StartContainerResponse::new())
    }

    async fn exec(&self, _: &TtrpcContext, _: ExecRequest) -> ttrpc::Result<ExecResponse> {
        hang().await
    }

    async fn freeze(&self, _: &TtrpcContext, _: FreezeRequest) -> ttrpc::Result<FreezeResponse> {
        hang().await
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        _: UpdateContainerRequest,
    ) -> ttrpc::Result<UpdateContainerResponse> {
        hang().await
    }

    async fn stats(&self, _: &TtrpcContext, _: StatsRequest) -> ttrpc::Result<StatsResponse> {
        hang().await
    }

    async fn processes(&self, _: &TtrpcContext, _: ProcessesRequest) -> ttrpc::Result<ProcessesResponse> {
        hang().await
    }

    async fn signal(&self, _: &TtrpcContext, _: SignalRequest) -> ttrpc::Result<SignalResponse> {
        hang().await
    }

    async fn next_events(&self, _: &TtrpcContext, _: NextEventsRequest) -> ttrpc::Result<NextEventsResponse> {
        hang().await
    }
}

/// Answers nothing.
async fn hang<T>() -> ttrpc::Result<T> {
    std::future::pending().await
}

fn main() -> ExitCode {
    // The kernel gives parameters that it does not know to init's environment.
    let how = match std::env::var("test_guest").as_deref() {
        Ok("silent") => How::Silent,
        Ok("halt") => How::Halt,
        Ok("other-major") => How::OtherMajor,
        Ok("dies-in-create") => How::DiesInCreate,
        Ok("hangs-in-create") => How::HangsInCreate,
        Ok("hangs-after-start") => How::HangsAfterStart,
        other => {
            // More than the serial port takes at once, so that its loss cannot go unseen.
            let lines: String = (0..40).map(|line| format!("husk-test-guest: line {line} of 40\n")).collect();
            last_words(format_args!("{lines}husk-test-guest: test_guest={other:?}: unknown"));
            return ExitCode::FAILURE;
        }
    };
    match how {
        How::Silent => loop {
            std::thread::park();
        },
        How::Halt => {
            let cause = reboot(RebootCommand::PowerOff);
            last_words(format_args!("husk-test-guest: cannot power off: {cause:?}"));
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
            match runtime.map(|runtime| runtime.block_on(serve(how))) {
                Ok(Err(cause)) => last_words(format_args!("husk-test-guest: {cause}")),
                Err(cause) => last_words(format_args!("husk-test-guest: {cause}")),
                Ok(Ok(())) => {}
            }
        }
    }
    ExitCode::FAILURE
}

async fn serve(how: How) -> Result<(), Box<dyn std::error::Error>> {
    let connection = dial(RPC_PORT).await?;
    let connections = futures_util::stream::iter([Ok(connection)]).chain(futures_util::stream::pending());
    let service = create_agent(std::sync::Arc::new(Guest(how)));
    let mut server = Server::new().add_listener(Listener::new(connections)).register_service(service);
    server.start().await?;
    std::future::pending().await
}
