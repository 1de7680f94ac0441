//! What a snapshotter wants mounted (overlayfs, native), in the shim's private mount namespace.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

use super::{RootfsError, c_path, detach};
use crate::host::ROOTFS;
use crate::host::idmap::IdMap;

/// Longest options of mount(2): a page with its zero.
const LONGEST_OPTIONS: usize = 4095;

/// Mounts each on the last, opens the topmost and leaves none mounted.
pub fn open(mounts: &[Mount], scratch: &Path) -> Result<OwnedFd, RootfsError> {
    let target = scratch.join(ROOTFS);
    let failed = |what| {
        let path = target.clone();
        move |cause: io::Error| RootfsError::Io { what, path, cause }
    };
    std::fs::create_dir_all(&target).map_err(failed("make the directory"))?;
    let result = mounts.iter().try_for_each(|entry| mount_one(entry, &target));
    let root = result.and_then(|()| detach(&target));
    // Until nothing is mounted: a mount can have failed half-way.
    loop {
        match unmount(&target, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(cause) => return Err(failed("unmount")(cause.into())),
        }
    }
    let root = root?;
    std::fs::remove_dir(&target).map_err(failed("remove the directory"))?;
    Ok(root)
}

fn mount_one(entry: &Mount, target: &Path) -> Result<(), RootfsError> {
    let (kind, source) = (entry.type_(), entry.source());
    let failed = |cause: rustix::io::Errno| RootfsError::Io {
        what: "mount the root on",
        path: target.to_owned(),
        cause: io::Error::other(format!("{kind} from {source}, options {:?}: {cause}", entry.options)),
    };
    let options: Vec<&str> = entry.options.iter().map(String::as_str).collect();
    let ids = IdMap::of(&options).map_err(|why| refused(entry, why))?;
    let unmapped = |from: &Path| {
        let path = from.to_owned();
        |cause| RootfsError::Io { what: "map the ids of the snapshot in", path, cause }
    };
    match kind {
        "bind" | "rbind" => {
            let read_only = options.contains(&"ro");
            if let Some(ids) = ids {
                return ids.mount(Path::new(source), target, read_only).map_err(unmapped(Path::new(source)));
            }
            // Submounts are not the snapshot's.
            mount_bind(source, target).map_err(failed)?;
            if read_only {
                mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "").map_err(failed)?;
            }
            Ok(())
        }
        "overlay" => {
            let read_only = if options.contains(&"ro") { MountFlags::RDONLY } else { MountFlags::empty() };
            let (directory, data) = match ids {
                None => overlay_options(&options),
                Some(ids) => {
                    let Some((layers, data)) = relative_layers(&options) else {
                        return Err(refused(entry, "it has no layers whose ids could be mapped"));
                    };
                    // The layers, where the overlay covers them. Its own directory has the ids that it is to have.
                    ids.mount(&layers, target, true).map_err(unmapped(&layers))?;
                    (Some(target.to_owned()), data)
                }
            };
            let data = c_path(Path::new(&data)).map_err(|_| failed(rustix::io::Errno::INVAL))?;
            if data.as_bytes().len() > LONGEST_OPTIONS {
                return Err(refused(entry, "it has more layers than mount(2) has room for: squash the image"));
            }
            in_directory(directory.as_deref(), || mount(source, target, "overlay", read_only, &*data)).map_err(failed)
        }
        _ => Err(refused(entry, "use the snapshotter overlayfs or native")),
    }
}

/// Where the files of a mount are.
pub fn files(entry: &Mount) -> Vec<PathBuf> {
    if entry.type_() != "overlay" {
        return vec![entry.source().into()];
    }
    let layers = entry
        .options
        .iter()
        .filter_map(|option| option.strip_prefix("upperdir=").or_else(|| option.strip_prefix("lowerdir=")));
    layers.flat_map(|layers| layers.split(':')).map(PathBuf::from).collect()
}

fn refused(entry: &Mount, why: &'static str) -> RootfsError {
    RootfsError::Mount { kind: entry.type_().to_owned(), origin: entry.source().to_owned(), why }
}

/// The options of an overlay as one text, and where its paths begin: with many layers only paths below a common
/// directory fit into a page (containerd's own `mount` does the same).
fn overlay_options(options: &[&str]) -> (Option<PathBuf>, String) {
    let whole = file_systems(options).collect::<Vec<_>>().join(",");
    if whole.len() <= LONGEST_OPTIONS {
        return (None, whole);
    }
    match relative_layers(options) {
        Some((common, short)) => (Some(common), short),
        None => (None, whole),
    }
}

/// The directory that all layers of an overlay are below, and its options with their paths from there.
fn relative_layers(options: &[&str]) -> Option<(PathBuf, String)> {
    let (common, layers) =
        options.iter().find_map(|option| option.strip_prefix("lowerdir=")).and_then(common_directory)?;
    let short = file_systems(options).map(|option| {
        if option.starts_with("lowerdir=") { format!("lowerdir={}", layers.join(":")) } else { option.to_owned() }
    });
    Some((common, short.collect::<Vec<_>>().join(",")))
}

/// The options that the file system gets.
fn file_systems<'a>(options: &[&'a str]) -> impl Iterator<Item = &'a str> {
    options.iter().copied().filter(|option| !matches!(*option, "ro" | "rw") && !IdMap::has(option))
}

/// The directory that all layers are below, and their paths from there.
fn common_directory(lower: &str) -> Option<(PathBuf, Vec<String>)> {
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let common = layers.first()?.ancestors().skip(1).find(|dir| layers.iter().all(|layer| layer.starts_with(dir)))?;
    let relative = layers.iter().map(|layer| Some(layer.strip_prefix(common).ok()?.to_str()?.to_owned()));
    Some((common.to_owned(), relative.collect::<Option<_>>()?))
}

/// Runs `f` in a directory. The working directory is the process's: nothing else runs meanwhile, because the shim has
/// one thread and `f` does not wait.
fn in_directory(directory: Option<&Path>, f: impl FnOnce() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    let Some(directory) = directory else { return f() };
    let back =
        rustix::fs::open(".", rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    rustix::process::chdir(directory)?;
    let result = f();
    rustix::process::fchdir(back)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_layers_are_named_from_their_common_directory() {
        let layers: Vec<String> = (0..100)
            .map(|n| format!("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/{n}/fs"))
            .collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        let options = ["index=off", "workdir=/w", "upperdir=/u", &lower, "ro"];
        let (directory, text) = overlay_options(&options);
        let directory = directory.unwrap();
        assert_eq!(directory, Path::new("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"));
        assert!(text.len() < LONGEST_OPTIONS, "{}", text.len());
        assert!(text.starts_with("index=off,workdir=/w,upperdir=/u,lowerdir=0/fs:1/fs:") && text.ends_with("99/fs"));
        let (directory, text) = overlay_options(&["lowerdir=/a:/b", "rw"]);
        assert_eq!((directory, text.as_str()), (None, "lowerdir=/a:/b"));
        let (directory, text) =
            relative_layers(&["uidmap=0:1:2", "gidmap=0:1:2", "lowerdir=/s/2/fs:/s/1/fs", "ro"]).unwrap();
        assert_eq!((directory.as_path(), text.as_str()), (Path::new("/s"), "lowerdir=2/fs:1/fs"));
    }

    #[test]
    fn a_mounts_files_are_its_layers_or_its_source() {
        let of = |kind: &str, source: &str, options: &[&str]| {
            let entry = Mount {
                type_: kind.to_owned(),
                source: source.to_owned(),
                options: options.iter().map(|option| (*option).to_owned()).collect(),
                ..Mount::default()
            };
            files(&entry).iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of("overlay", "overlay", &["workdir=/w", "upperdir=/u", "lowerdir=/a:/b"]), "/u /a /b");
        assert_eq!(of("bind", "/s", &["rbind", "ro"]), "/s");
    }

    #[test]
    fn the_working_directory_comes_back() {
        let before = std::env::current_dir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let mut seen = PathBuf::new();
        let result = in_directory(Some(inside.path()), || {
            seen = std::env::current_dir().unwrap();
            Err(rustix::io::Errno::NOSYS)
        });
        assert_eq!((result, seen), (Err(rustix::io::Errno::NOSYS), inside.path().canonicalize().unwrap()));
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
