//! What a container's document may ask for (runtime-spec, features.md): CRI offers users what is in it, as read-only mounts
//! with all that is below them, and user namespaces.

use husk_protocol::features::Can;
use oci_spec::OciSpecError;
use oci_spec::runtime::Features;

/// The features.
///
/// # Errors
/// None: the builders want nothing more.
pub fn features() -> Result<Features, OciSpecError> {
    husk_protocol::features::features(&Can {
        mapped_mounts: true,
        // The guest has version 2 alone; the host may have either, and systemd on it is asked for a scope.
        systemd: true,
    })
}
