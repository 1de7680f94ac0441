//! Hooks of the runtime namespace (runtime-spec, config.md "POSIX-platform Hooks"), which is where this program runs.
//!
//! | kind | when |
//! |---|---|
//! | `prestart`, then `createRuntime` | in `create`, when the file systems are mounted and before the root is the container's |
//! | `poststart` | in `start`, once the program runs |
//! | `poststop` | in `delete`, or after a failed `create`, once all of the container is gone |
//!
//! The other two kinds are run by the container's init.

use oci_spec::runtime::{self, ContainerState, Spec};

use super::error::OciError;
use super::state::Stored;
use crate::container::{Hooks, reset_signals};

/// The hooks of a document.
#[derive(Debug, Default)]
pub(super) struct RuntimeHooks {
    prestart: Hooks,
    create: Hooks,
    poststart: Hooks,
    poststop: Hooks,
}

impl RuntimeHooks {
    /// Checks them, whenever their time will be.
    ///
    /// # Errors
    /// One cannot be run as it is written.
    pub(super) fn of(document: &Spec) -> Result<Self, OciError> {
        let Some(hooks) = document.hooks() else { return Ok(Self::default()) };
        // Without any of its own a hook has this program's, as with runc.
        let env: Vec<String> = std::env::vars_os()
            .filter_map(|(key, value)| Some(format!("{}={}", key.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let list =
            |kind, hooks: &Option<Vec<runtime::Hook>>| Hooks::of(kind, hooks.as_deref().unwrap_or_default(), &env);
        #[allow(deprecated, reason = "documents have them all the same")]
        let prestart = hooks.prestart();
        Ok(Self {
            prestart: list("prestart", prestart)?,
            create: list("createRuntime", hooks.create_runtime())?,
            poststart: list("poststart", hooks.poststart())?,
            poststop: list("poststop", hooks.poststop())?,
        })
    }

    /// Whether there are some to run in the middle of a creation.
    pub(super) fn has_creation(&self) -> bool {
        !self.prestart.is_empty() || !self.create.is_empty()
    }

    /// Runs those of the creation.
    ///
    /// # Errors
    /// The first that failed.
    pub(super) fn create(&self, container: &Stored) -> Result<(), String> {
        let state = container.told(ContainerState::Creating);
        self.prestart.run(&state, None, in_bundle(container))?;
        self.create.run(&state, None, in_bundle(container))
    }

    /// Runs those of the start.
    ///
    /// # Errors
    /// The first that failed.
    pub(super) fn poststart(&self, container: &Stored) -> Result<(), String> {
        self.poststart.run(&container.told(ContainerState::Running), None, in_bundle(container))
    }

    /// Runs all of those of the end, and logs which have failed.
    pub(super) fn poststop(&self, container: &Stored) {
        for why in self.poststop.run_all(&container.told(ContainerState::Stopped), in_bundle(container)) {
            log::warn!("{why}");
        }
    }
}

/// Where hooks run.
fn in_bundle(container: &Stored) -> impl Fn() -> Result<(), String> {
    let bundle = &container.record.bundle;
    move || {
        reset_signals();
        rustix::process::chdir(bundle).map_err(|cause| format!("cannot enter {}: {cause}", bundle.display()))
    }
}
