//! Rates of a block device of the host: they hold for the container's files that come from it, and for no others.

use std::os::linux::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use husk_tests::ctr::{Detached, Runtime, must, wait_for_state};
use husk_tests::host::leaves_nothing;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::busybox;
use crate::document::document;
use crate::resources::update;

/// A directory of the host's disk, and the disk's number.
fn on_disk() -> (TempDir, (u32, u32)) {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let number = directory.path().metadata().unwrap().st_dev();
    let device = (rustix::fs::major(number), rustix::fs::minor(number));
    assert!(device.0 != 0, "the test bed's /var/tmp is on a disk");
    (directory, device)
}

/// A container with the directory at /data.
fn started(id: &str, root: &Path, data: &Path, script: &str, resources: &Value) -> Detached {
    let file = document(root, script, |document| {
        let mount = json!({ "destination": "/data", "type": "bind", "source": data, "options": ["rbind", "rw"] });
        document["mounts"].as_array_mut().unwrap().push(mount);
        document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
        for (key, value) in resources.as_object().unwrap() {
            document["linux"]["resources"][key] = value.clone();
        }
    });
    let container = Detached::of(id);
    let config = file.path().to_str().unwrap();
    must(&["run", "-d", "--null-io", "--runtime", Runtime::Husk.name(), "--config", config, id]);
    container
}

fn rates(device: (u32, u32), name: &str, rate: u64) -> Value {
    json!({ "blockIO": { name: [{ "major": device.0, "minor": device.1, "rate": rate }] } })
}

/// How long a program in the container takes.
fn time(container: &Detached, name: &str, script: &str) -> f64 {
    let begin = Instant::now();
    let output = container.exec(name, &["/bin/sh", "-c", script]);
    let seconds = begin.elapsed().as_secs_f64();
    assert_eq!(output.status, 0, "{name}: {}", output.errors());
    println!("    {name}: {seconds:.2} s");
    seconds
}

const MIB: u64 = 1 << 20;
/// Three MiB; to a disk's file, which takes three seconds at a MiB in a second.
const WRITE: &str = "dd if=/dev/zero of=/data/file bs=64k count=48";
const READ: &str = "cat /data/file >/dev/null";

#[test]
fn rates_of_a_device_hold_for_the_files_that_come_from_it() {
    leaves_nothing(|| {
        // The root is on a tmpfs.
        let (root, (data, device)) = (busybox(), on_disk());
        let limited = rates(device, "throttleWriteBpsDevice", MIB);
        let container = started("slow", root.path(), data.path(), "sleep 100000", &limited);
        // A free one says how long it takes on this host.
        let written = time(&container, "write-limited", WRITE);
        assert!((2.5..10.0).contains(&written), "{written}");
        let elsewhere = time(&container, "write-root", &WRITE.replace("/data", ""));
        let read = time(&container, "read-free", READ);
        assert!(elsewhere < written - 0.5 && read < written - 0.5, "{elsewhere} {read} {written}");
        let both = json!({ "blockIO": {
            "throttleWriteBpsDevice": [{ "major": device.0, "minor": device.1, "rate": 0 }],
            "throttleReadBpsDevice": [{ "major": device.0, "minor": device.1, "rate": MIB }] } });
        update("slow", &both).unwrap();
        let written = time(&container, "write-free", WRITE);
        let read = time(&container, "read-limited", READ);
        assert!((2.5..10.0).contains(&read) && written < read - 0.5, "{read} {written}");
        // The other way to say it; how often instead of how much.
        update("slow", &json!({ "unified": { "io.max": format!("{}:{} rbps=max wiops=10", device.0, device.1) } }))
            .unwrap();
        let writes = time(&container, "writes-limited", "dd if=/dev/zero of=/data/file bs=512 count=40 conv=notrunc");
        assert!((3.5..12.0).contains(&writes), "{writes}");
        let read = time(&container, "read-free-again", READ);
        assert!(read < 2.5, "{read}");
        for (resources, words) in [
            (
                rates((4000, 7), "throttleReadIOPSDevice", 1),
                "linux.resources.blockIO.throttleReadIOPSDevice[0]: the host has no block device 4000:7",
            ),
            (json!({ "unified": { "io.max": format!("{}:{} rbps=fast", device.0, device.1) } }), "has no rate"),
        ] {
            let error = update("slow", &resources).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let still =
            time(&container, "writes-still-limited", "dd if=/dev/zero of=/data/file bs=512 count=40 conv=notrunc");
        assert!(still > 3.5, "{still}");
    });
}

#[test]
fn operations_of_a_device_are_limited_both_ways() {
    leaves_nothing(|| {
        let (root, (data, device)) = (busybox(), on_disk());
        for number in 0..40 {
            std::fs::write(data.path().join(format!("small{number}")), "word").unwrap();
        }
        let writes = "dd if=/dev/zero of=/data/file bs=512 count=40";
        let reads = "cat /data/small*";
        let limited = rates(device, "throttleWriteIOPSDevice", 10);
        let container = started("operations", root.path(), data.path(), "sleep 100000", &limited);
        let written = time(&container, "forty-writes-limited", writes);
        assert!((3.5..12.0).contains(&written), "{written}");
        let both = json!({ "blockIO": {
            "throttleWriteIOPSDevice": [{ "major": device.0, "minor": device.1, "rate": 0 }],
            "throttleReadIOPSDevice": [{ "major": device.0, "minor": device.1, "rate": 10 }] } });
        update("operations", &both).unwrap();
        let read = time(&container, "forty-reads-limited", reads);
        let written = time(&container, "forty-writes-free", writes);
        assert!((3.5..12.0).contains(&read) && written < 2.5, "{read} {written}");
    });
}

#[test]
fn who_waits_for_a_rate_can_be_killed() {
    leaves_nothing(|| {
        let (root, (data, device)) = (busybox(), on_disk());
        let limited = rates(device, "throttleWriteBpsDevice", 1000);
        // Half an hour for the first MiB.
        let script = "dd if=/dev/zero of=/data/file bs=1M count=10";
        let container = started("stuck", root.path(), data.path(), script, &limited);
        let begin = Instant::now();
        while data.path().join("file").metadata().map_or(0, |file| file.st_size()) < MIB {
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
            std::thread::yield_now();
        }
        let begin = Instant::now();
        must(&["task", "kill", "-s", "KILL", "stuck"]);
        wait_for_state("stuck", "STOPPED");
        assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
        let log = std::fs::read_to_string("/run/husk/default/stuck/shim.log").unwrap();
        assert!(!log.contains("the guest does not end it"), "{log}");
        drop(container);
    });
}

#[test]
fn who_waits_holds_up_no_other() {
    leaves_nothing(|| {
        let (root, (data, device)) = (busybox(), on_disk());
        let container =
            started("beside", root.path(), data.path(), "sleep 100000", &rates(device, "throttleWriteBpsDevice", MIB));
        let slow = container.start_exec("slow", &[], &["/bin/sh", "-c", &WRITE.replace("48", "200")]);
        let begin = Instant::now();
        while data.path().join("file").metadata().map_or(0, |file| file.st_size()) < 2 * MIB {
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
            std::thread::yield_now();
        }
        // Ten seconds of it are left.
        let other = time(&container, "beside-write", &WRITE.replace("/data", ""));
        let read = time(&container, "beside-read", READ);
        assert!(other < 5.0 && read < 5.0, "{other} {read}");
        assert!(data.path().join("file").metadata().unwrap().st_size() < 12 * MIB, "it was not limited");
        drop(container);
        let _ = slow.wait();
    });
}

#[test]
fn what_is_mounted_below_is_told_apart() {
    leaves_nothing(|| {
        let (root, (data, device)) = (busybox(), on_disk());
        let below = data.path().join("memory");
        std::fs::create_dir(&below).unwrap();
        mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None).unwrap();
        let container =
            started("below", root.path(), data.path(), "sleep 100000", &rates(device, "throttleWriteBpsDevice", MIB));
        let disk = time(&container, "disk", WRITE);
        let memory = time(&container, "memory", &WRITE.replace("/data/file", "/data/memory/file"));
        drop(container);
        unmount(&below, UnmountFlags::DETACH).unwrap();
        assert!(disk > 2.5 && memory < disk - 0.5, "{disk} {memory}");
    });
}
