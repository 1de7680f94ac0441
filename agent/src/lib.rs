//! husk's agent: pid 1 of the guest, which makes and watches the pod's containers on behalf of the shim.
//!
//! One thread, one event loop ([tokio]'s `current_thread`). [`boot`] makes the guest ready, [`vsock`] dials the host,
//! [`service`] answers the shim's calls, [`sandbox`] makes the guest one certain pod, [`container`] is the containers' life, [`reaper`] the one place that waits for
//! processes, [`events`] what the shim is told of them, [`stdio`] their streams, [`network`] the guest's interfaces,
//! [`forward`] connections from the host.
//!
//! Called as `husk-agent oci`, it is another program: the same [`container`] code as a command line on a host (`oci/`).

pub mod boot;
pub mod console;
pub mod container;
pub mod events;
pub mod forward;
pub mod logger;
pub mod network;
mod oci;
pub mod reaper;
pub mod sandbox;
pub mod service;
pub mod shares;
pub mod stdio;
pub mod vsock;
pub mod watched;

use std::process::ExitCode;
use std::sync::Arc;

/// Runs as pid 1: returns only with an error, and then the kernel panics and the VMM tells the shim.
#[must_use]
pub fn run() -> ExitCode {
    // Of the kernel's words for pid 1 none is this one (init/main.c hands on what is behind "--").
    if std::env::args_os().nth(1).is_some_and(|word| word == "oci") {
        return oci::run();
    }
    logger::init();
    if std::process::id() != 1 {
        eprintln!(
            "husk-agent is the first process of husk's guests; elsewhere it is only `husk-agent oci` (docs/operations.md)"
        );
        return ExitCode::from(2);
    }
    let init_tsc = boot::time_stamp_counter();
    console::drain_after_panics();
    // Copies of the agent join containers before they become their programs, which is what ends this: until then a process of
    // a container cannot trace them or look at what they have (PR_SET_DUMPABLE, prctl(2)), unless it has CAP_SYS_PTRACE.
    let hidden = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    if let Err(cause) = hidden {
        console::last_words(format_args!("husk-agent: cannot hide from containers: {cause}"));
        return ExitCode::FAILURE;
    }
    if let Err(cause) = boot::prepare() {
        console::last_words(format_args!("husk-agent: {cause}"));
        return ExitCode::FAILURE;
    }
    boot::raise_files();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            console::last_words(format_args!("husk-agent: cannot make the event loop: {cause}"));
            return ExitCode::FAILURE;
        }
    };
    if let Err(cause) = runtime.block_on(serve(init_tsc)) {
        console::last_words(format_args!("husk-agent: {cause}"));
    }
    ExitCode::FAILURE
}

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No connection to the host.
    #[error("cannot dial the host: {0}")]
    Dial(std::io::Error),
    /// No reaper.
    #[error("cannot watch for ended processes: {0}")]
    Reaper(std::io::Error),
    /// The server.
    #[error("cannot serve: {0}")]
    Serve(#[from] ttrpc::Error),
}

async fn serve(init_tsc: u64) -> Result<(), ServeError> {
    let reaper = reaper::Reaper::start().map_err(ServeError::Reaper)?;
    let times = service::StartTimes { init_tsc, ready_ns: boot::monotonic_ns() };
    let connection = vsock::dial(husk_protocol::streams::RPC_PORT).await.map_err(ServeError::Dial)?;
    let service = Arc::new(service::Service::new(reaper, vsock::Vsock, times));
    // Its drop is how the agent learns that the host is gone: nothing is left to do for this guest then.
    service::serve(vsock::Tied::new(connection, boot::restart), service).await?;
    Ok(())
}
