//! The network devices of the guest's platform: each hangs on a window of virtio-mmio's, which the host fills and empties.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::reaper::Reaper;
use crate::shares::apart;

/// The driver's directory, with `bind` and `unbind` (Documentation/driver-api/driver-model/binding.rst).
const DRIVER: &str = "/sys/bus/platform/drivers/virtio-mmio";
/// The platform's devices.
const DEVICES: &str = "/sys/bus/platform/devices";
/// Time for a driver to leave a device: it waits for packets under way.
const LIMIT: Duration = Duration::from_secs(10);

/// Where interfaces come from.
pub trait Devices {
    /// The number of the interface of a window, after its driver has taken it.
    ///
    /// # Errors
    /// There is none.
    fn find(&self, window: u32) -> io::Result<u32>;

    /// Takes the device of a window from its driver: its interface is gone then.
    fn release(&self, window: u32) -> impl Future<Output = io::Result<()>> + Send;
}

/// The guest's.
#[derive(Debug)]
pub struct Windows {
    reaper: Reaper,
}

impl Windows {
    /// The guest's; the reaper is for what waits for the kernel.
    #[must_use]
    pub fn new(reaper: Reaper) -> Self {
        Self { reaper }
    }
}

impl Devices for Windows {
    fn find(&self, window: u32) -> io::Result<u32> {
        let device = path(window);
        if let Some(index) = interface(&device)? {
            return Ok(index);
        }
        // A device that came after the boot: its window was empty when the driver looked. The kernel makes the interface in this
        // write; virtio-net is not among the drivers that are probed later.
        match fs::write(Path::new(DRIVER).join("bind"), name(window)) {
            Err(cause) if cause.raw_os_error() != Some(libc::EBUSY) => {
                return Err(io::Error::new(
                    cause.kind(),
                    format!("the driver does not take {}: {cause}", name(window)),
                ));
            }
            _ => {}
        }
        interface(&device)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("{} is no network device of this namespace", name(window)))
        })
    }

    async fn release(&self, window: u32) -> io::Result<()> {
        // The kernel waits for grace periods here, and for whoever holds the interface.
        let leave = move || fs::write(Path::new(DRIVER).join("unbind"), name(window)).is_ok();
        apart("take a network device from its driver", Some(LIMIT), &self.reaper, leave).await;
        if path(window).join("driver").exists() {
            return Err(io::Error::other(format!("the driver does not leave {}", name(window))));
        }
        Ok(())
    }
}

fn name(window: u32) -> String {
    format!("virtio-mmio.{window}")
}

fn path(window: u32) -> PathBuf {
    Path::new(DEVICES).join(name(window))
}

/// The number of the interface of a platform device: `virtio*/net/*/ifindex` below it.
fn interface(device: &Path) -> io::Result<Option<u32>> {
    for entry in directory(device)? {
        if !entry.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("virtio")) {
            continue;
        }
        if let Some(interface) = directory(&entry.join("net"))?.first() {
            let number = fs::read_to_string(interface.join("ifindex"))?;
            let number = number.trim().parse();
            return number.map(Some).map_err(|_| io::Error::other(format!("{}: no number", interface.display())));
        }
    }
    Ok(None)
}

/// What is in a directory; nothing, where there is none.
fn directory(path: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(path) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(cause) => Err(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_is_below_the_platform_device() {
        let device = tempfile::tempdir().unwrap();
        let of = |name: &str| interface(&device.path().join(name));
        assert_eq!(of("virtio-mmio.9").unwrap(), None);
        fs::create_dir_all(device.path().join("virtio-mmio.3/virtio7")).unwrap();
        assert_eq!(of("virtio-mmio.3").unwrap(), None);
        let net = device.path().join("virtio-mmio.3/virtio7/net/eth0");
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("ifindex"), "4\n").unwrap();
        assert_eq!(of("virtio-mmio.3").unwrap(), Some(4));
        fs::write(net.join("ifindex"), "x").unwrap();
        assert!(of("virtio-mmio.3").is_err());
    }
}
