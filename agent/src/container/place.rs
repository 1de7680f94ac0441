//! Where a container runs, which decides what some words of its document mean.

/// The kernel that a container runs on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// A guest's. The document was written for the host: its devices, processors and namespaces do not exist here.
    #[default]
    Guest,
    /// The kernel that the document was written for (`husk-agent oci`).
    Host,
}

impl Place {
    /// Whether it is the kernel that the document was written for.
    #[must_use]
    pub fn is_host(self) -> bool {
        self == Self::Host
    }
}
