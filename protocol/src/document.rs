//! Words of the OCI runtime document that both sides know: the agent does what they say, the shim says that it can.

use std::time::Duration;

use serde_json::Value;

/// Capabilities, in the order of their numbers (linux/capability.h).
pub const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What a mount adds to the time that the making of a container has: on a slow host thousands of them take long.
pub const PER_MOUNT: Duration = Duration::from_millis(10);

/// Options that are a mount's and not its file system's (runtime-spec, config.md, "Linux mount options").
pub const MOUNT_OPTIONS: [&str; 47] = [
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "exec",
    "idmap",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "unbindable",
];

/// A document without the capabilities that husk does not know, and which those are (`process.capabilities.bounding[] "CAP_X"`);
/// none: there are none such, or it is no document. `capabilities` is where they are (RFC 6901). Names are taken as oci-spec
/// takes them: in small letters and without `CAP_`, too.
#[must_use]
pub fn without_unknown_capabilities(document: &[u8], capabilities: &str) -> Option<(Vec<u8>, Vec<String>)> {
    let is_known = |name: &str| {
        let name = name.to_uppercase();
        let bare = name.trim_start_matches("CAP_");
        CAPABILITIES.iter().any(|known| known.trim_start_matches("CAP_") == bare)
    };
    let mut document: Value = serde_json::from_slice(document).ok()?;
    let mut left_out = Vec::new();
    for (set, names) in document.pointer_mut(capabilities)?.as_object_mut()? {
        let Some(names) = names.as_array_mut() else { continue };
        names.retain(|name| {
            // What is no name at all is for whoever reads it.
            let known = name.as_str().is_none_or(is_known);
            if !known {
                let place = capabilities.trim_start_matches('/').replace('/', ".");
                left_out.push(shortened(&format!("{place}.{set}[] {name}")));
            }
            known
        });
    }
    let document = serde_json::to_vec(&document).ok()?;
    (!left_out.is_empty()).then_some((document, left_out))
}

/// What people read of a text that somebody has made as long as they liked: its beginning, and how long it is.
#[must_use]
pub fn shortened(text: &str) -> String {
    const MOST: usize = 300;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_capabilities_are_left_out_by_name() {
        let text = br#"{"a":1,"x":{"b":["CAP_CHOWN","sys_admin","CAP_NEW",7],"c":["NEW"],"d":null}}"#;
        let (rest, left_out) = without_unknown_capabilities(text, "/x").unwrap();
        assert_eq!(left_out, [r#"x.b[] "CAP_NEW""#, r#"x.c[] "NEW""#]);
        let rest: Value = serde_json::from_slice(&rest).unwrap();
        let wanted = serde_json::json!({ "a": 1, "x": { "b": ["CAP_CHOWN", "sys_admin", 7], "c": [], "d": null } });
        assert_eq!(rest, wanted);
        for (text, place) in
            [("{\"x\":{\"b\":[\"CAP_CHOWN\"]}}", "/x"), ("{}", "/x"), ("[]", "/x"), ("{", "/x"), ("{\"x\":7}", "/x")]
        {
            assert_eq!(without_unknown_capabilities(text.as_bytes(), place), None, "{text}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&"ä".repeat(1000));
        assert!(long.starts_with("ää") && long.ends_with("ä... (2000 bytes)") && long.chars().count() == 316, "{long}");
    }
}
