//! What of the host's files is in the container, and the container's own root.

use std::path::{Component, Path};

use super::super::document::{Document, Mount};
use super::Severity::{Critical, High, Info, Low, Medium};
use super::{Hit, Severity};

/// Sockets through which whoever can connect runs containers as root, also where the mount is read-only.
const SOCKETS: [&str; 7] = [
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/containerd/containerd.sock.ttrpc",
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/podman/podman.sock",
    "/run/cri-dockerd.sock",
];

/// A part of the host that matters.
struct Place {
    path: &'static str,
    /// What it is if it can be written to, and if it can only be read; none: not worth a word.
    write: Severity,
    read: Option<Severity>,
    /// Whether what is below it counts too.
    tree: bool,
    what: &'static str,
}

const fn place(path: &'static str, write: Severity, read: Option<Severity>, tree: bool, what: &'static str) -> Place {
    Place { path, write, read, tree, what }
}

/// The first that fits counts, so that what is special stands before what is above it.
const PLACES: [Place; 33] = [
    place("/", Critical, Some(High), false, "the host's whole file system"),
    place("/etc/hosts", Low, None, false, "the host's names of addresses"),
    place("/etc/resolv.conf", Low, None, false, "the host's name servers"),
    place("/etc/localtime", Low, None, false, "the host's time zone"),
    place("/etc/ssl", High, None, true, "whom the host trusts"),
    place("/etc/shadow", Critical, Some(High), true, "the passwords of the host's users"),
    place("/etc/ssh", Critical, Some(High), true, "the keys of the host's ssh"),
    place("/etc/kubernetes", Critical, Some(High), true, "keys and static pods of the cluster's node"),
    place("/etc", Critical, Some(Medium), false, "the host's configuration, its users and their passwords"),
    place("/etc", High, None, true, "a part of the host's configuration"),
    place("/root", High, Some(Medium), true, "root's own files on the host, keys among them"),
    place("/home", High, Some(Medium), true, "files of the host's users, keys among them"),
    place("/boot", Critical, None, true, "the host's kernel"),
    place("/usr", Critical, None, true, "the host's programs, which root runs"),
    place("/bin", Critical, None, true, "the host's programs, which root runs"),
    place("/sbin", Critical, None, true, "the host's programs, which root runs"),
    place("/lib", Critical, None, true, "the host's libraries and kernel modules"),
    place("/lib64", Critical, None, true, "the host's libraries"),
    place("/opt", High, None, true, "programs of the host"),
    place("/proc", Critical, Some(High), true, "the host's processes and the settings of its kernel"),
    place("/sys", High, Some(Low), true, "the devices of the host and the settings of its kernel"),
    // What the kubelet and containerd make for a container, each in a directory of its own.
    place(
        "/var/lib/kubelet/pods",
        High,
        Some(High),
        false,
        "the volumes of all pods of the node, their secrets among them",
    ),
    place("/var/lib/kubelet/pods", Info, None, true, "a volume of a pod"),
    place("/var/lib/kubelet", Critical, Some(High), true, "the kubelet's keys and the volumes of all pods of the node"),
    place(
        "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes",
        Info,
        None,
        true,
        "a file that containerd made for the pod",
    ),
    place(
        "/run/containerd/io.containerd.grpc.v1.cri/sandboxes",
        Info,
        None,
        true,
        "a file that containerd made for the pod",
    ),
    place("/var/lib/containerd", Critical, Some(Medium), true, "images and roots of all containers"),
    place("/var/lib/docker", Critical, Some(Medium), true, "images, roots and volumes of all containers"),
    place("/var/lib/etcd", Critical, Some(High), true, "the cluster's whole state, its secrets among them"),
    place("/var/log", Medium, Some(Low), true, "the host's logs, and a way to have the kubelet read other files"),
    place("/var/spool/cron", Critical, Some(Low), true, "programs that the host runs at their time"),
    place(
        "/var",
        Critical,
        Some(High),
        false,
        "state of all the host's services, the kubelet and containers among them",
    ),
    place("/run", High, Some(High), false, "sockets and state of the host's services"),
];

/// Where every host has other mounts below, which a mount that is read-only, but not recursively, leaves writable.
const WITH_MOUNTS_BELOW: [&str; 4] = ["/", "/sys", "/run", "/var"];

/// Nobody's business: made for one container, or empty of others' data.
const DEVICE_DIRECTORIES_THAT_ARE_MEMORY: [&str; 2] = ["/dev/shm", "/dev/mqueue"];

/// A path without `.`, `..` and double slashes, and with the one name of places that have two.
fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.extend(part.to_str()),
            Component::ParentDir => drop(parts.pop()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    let path = format!("/{}", parts.join("/"));
    // A link on every current system.
    match path.strip_prefix("/var/run") {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("/run{rest}"),
        _ => path,
    }
}

/// Whether `path` is `tree` or below it.
fn is_within(path: &str, tree: &str) -> bool {
    tree == "/" || path.strip_prefix(tree).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What the host has at the mount's source: as it is written, and where its links lead.
fn sources(mount: &Mount) -> Vec<String> {
    let mut sources = vec![plain(&mount.source)];
    sources.extend(mount.resolved.as_deref().map(plain));
    sources.dedup();
    sources
}

fn binds(document: &Document) -> impl Iterator<Item = (usize, &Mount)> {
    document.mounts.iter().enumerate().filter(|(_, mount)| mount.is_bind())
}

fn socket(mount: &Mount) -> Option<&'static str> {
    let sources = sources(mount);
    // A directory with the socket in it, but not all of the host: that is said elsewhere.
    SOCKETS.into_iter().find(|socket| sources.iter().any(|source| source != "/" && is_within(socket, source)))
}

/// Sockets of what runs containers.
pub fn runtime_socket(document: &Document) -> Vec<Hit> {
    let hit = |(at, mount): (usize, &Mount)| {
        let allows = format!(
            "whoever connects to {} has root on the host, by a container of its own; read-only changes nothing",
            socket(mount)?
        );
        Some(Hit::new(Critical, format!("mounts[{at}].source"), allows, "take the mount out"))
    };
    binds(document).filter_map(hit).collect()
}

/// The place that a source is, or that is below it.
fn judged(mount: &Mount) -> Option<(&'static Place, Severity)> {
    let severity = |place: &Place| {
        let below = mount.is_writable_below() && WITH_MOUNTS_BELOW.contains(&place.path);
        if !mount.is_read_only() || below { Some(place.write) } else { place.read }
    };
    let of = |source: &String| {
        let at = PLACES.iter().find(|place| place.path == source || (place.tree && is_within(source, place.path)));
        Some((at?, severity(at?)?))
    };
    sources(mount).iter().filter_map(of).max_by_key(|(_, severity)| *severity)
}

/// Places of the host that matter.
pub fn sensitive(document: &Document) -> Vec<Hit> {
    let hit = |(at, mount): (usize, &Mount)| {
        let (place, severity) = judged(mount)?;
        let can = match (mount.is_read_only(), mount.is_writable_below()) {
            (false, _) => "read and written",
            (true, true) => "read, and written where other mounts are below it (ro is not recursive)",
            (true, false) => "read",
        };
        let allows = format!("{} is {} and can be {can}", shown(mount), place.what);
        let remedy = match (mount.is_read_only(), mount.is_writable_below()) {
            (false, _) => "mount only the part that it needs, and read-only (ro)",
            (true, true) => "mount only the part that it needs, with rro or without rbind",
            (true, false) => "mount only the part that it needs",
        };
        (severity > Info).then(|| Hit::new(severity, format!("mounts[{at}].source"), allows, remedy))
    };
    binds(document).filter_map(hit).collect()
}

/// A source, and where it leads if that is another place.
fn shown(mount: &Mount) -> String {
    match &mount.resolved {
        Some(resolved) if plain(resolved) != plain(&mount.source) => {
            format!("{} (which leads to {resolved})", mount.source)
        }
        _ => mount.source.clone(),
    }
}

fn is_device_directory(source: &str) -> bool {
    is_within(source, "/dev") && !DEVICE_DIRECTORIES_THAT_ARE_MEMORY.iter().any(|memory| is_within(source, memory))
}

/// The host's /dev.
pub fn devices(document: &Document) -> Vec<Hit> {
    let found = binds(document).filter(|(_, mount)| sources(mount).iter().any(|source| is_device_directory(source)));
    let hit = |(at, mount): (usize, &Mount)| {
        // Read-only does not keep from writing to a device; without a rule that allows the device, nobody opens it.
        let severity = if document.all_devices_rule().is_some() { Critical } else { Medium };
        let allows = format!(
            "{} has nodes of the host's devices, disks among them, for whatever the device rules allow",
            shown(mount)
        );
        Hit::new(
            severity,
            format!("mounts[{at}].source"),
            allows,
            "name the devices that it needs in linux.devices (--device)",
        )
    };
    found.map(hit).collect()
}

/// File systems mounted from a disk of the host.
pub fn block(document: &Document) -> Vec<Hit> {
    let found =
        document.mounts.iter().enumerate().filter(|(_, mount)| !mount.is_bind() && mount.source.starts_with("/dev/"));
    let hit = |(at, mount): (usize, &Mount)| {
        let severity = if mount.is_read_only() { Medium } else { High };
        let allows =
            format!("the {} file system on {} is in the container, with all its files", mount.kind, mount.source);
        Hit::new(severity, format!("mounts[{at}].source"), allows, "see that the disk is the container's own")
    };
    found.map(hit).collect()
}

/// Other files of the host that the container can change.
pub fn other(document: &Document) -> Vec<Hit> {
    let plain_data = |mount: &Mount| {
        !mount.is_read_only()
            && judged(mount).is_none()
            && socket(mount).is_none()
            && !sources(mount).iter().any(|source| is_within(source, "/dev"))
    };
    let hit = |(at, mount): (usize, &Mount)| {
        let allows = format!("{} on the host can be written to", shown(mount));
        Hit::new(Info, format!("mounts[{at}].source"), allows, "mount it read-only (ro) if it is only read")
    };
    binds(document).filter(|(_, mount)| plain_data(mount)).map(hit).collect()
}

/// Mounts made inside that appear on the host.
pub fn propagation(document: &Document) -> Vec<Hit> {
    let can_mount = document.is_root() && !document.sets_with("CAP_SYS_ADMIN").is_empty();
    let severity = if can_mount { High } else { Low };
    let allows = "what is mounted there inside appears on the host too";
    let remedy = "use rslave or rprivate (mountPropagation: HostToContainer or None)";
    let shared = |mount: &Mount| mount.has("shared") || mount.has("rshared");
    let mounts = document.mounts.iter().enumerate().filter(|(_, mount)| shared(mount));
    let mut hits: Vec<Hit> =
        mounts.map(|(at, _)| Hit::new(severity, format!("mounts[{at}].options"), allows, remedy)).collect();
    if matches!(document.linux.rootfs_propagation.as_str(), "shared" | "rshared") {
        hits.push(Hit::new(severity, "linux.rootfsPropagation", allows, remedy));
    }
    hits
}

/// A root that can be written to.
pub fn writable_root(document: &Document) -> Vec<Hit> {
    if document.root.readonly {
        return Vec::new();
    }
    let allows = "whoever takes over the program can change the container's programs and leave others there";
    let remedy =
        "make it read-only (--read-only, securityContext.readOnlyRootFilesystem), with a tmpfs or a volume for data";
    vec![Hit::new(Low, "root.readonly", allows, remedy)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_plain() {
        assert_eq!(plain("/var/run/docker.sock"), "/run/docker.sock");
        assert_eq!(plain("/var/lib/../run//x/./y/"), "/run/x/y");
        assert_eq!([plain("/../.."), plain("/"), plain("/var/running")], ["/", "/", "/var/running"]);
        assert!(is_within("/etc/x", "/etc") && is_within("/etc", "/etc") && !is_within("/etcetera", "/etc"));
    }

    #[test]
    fn what_is_special_stands_before_what_is_above_it() {
        for (at, place) in PLACES.iter().enumerate() {
            let hidden = PLACES.iter().take(at).find(|earlier| earlier.tree && is_within(place.path, earlier.path));
            assert!(hidden.is_none(), "{} hides {}", hidden.unwrap().path, place.path);
        }
    }
}
