//! What documents say of devices.

use serde_json::{Value, json};

use super::*;

/// A block device that every Linux host has here or there; none: nothing can be tried.
fn some_device() -> Option<Device> {
    let mut all = std::fs::read_dir("/sys/dev/block").ok()?.flatten();
    all.next()?.file_name().to_str()?.parse().ok()
}

fn read_json(resources: Value, before: &Throttles) -> Result<Throttles, String> {
    let resources: LinuxResources = serde_json::from_value(resources).unwrap();
    read(&resources, before).map_err(|cause| cause.to_string())
}

#[test]
fn both_ways_to_say_it_are_the_same_and_add_up() {
    let Some(device) = some_device() else { return };
    let (major, minor) = (device.major, device.minor);
    let rate = |rate: u64| json!([{ "major": major, "minor": minor, "rate": rate }]);
    let lists = json!({ "blockIO": { "throttleReadBpsDevice": rate(1), "throttleWriteBpsDevice": rate(2),
        "throttleReadIOPSDevice": rate(3), "throttleWriteIOPSDevice": rate(4) } });
    let text = json!({ "unified": { "io.max": format!("{device} rbps=1 wbps=2 riops=3 wiops=4\n") } });
    let wanted: Throttles = [(device, Rates { read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 })].into();
    assert_eq!(read_json(lists, &Throttles::new()), Ok(wanted.clone()));
    assert_eq!(read_json(text, &Throttles::new()), Ok(wanted.clone()));
    let update = json!({ "blockIO": { "throttleReadBpsDevice": rate(0) },
        "unified": { "io.max": format!("{device} wiops=max") } });
    let after: Throttles = [(device, Rates { read_bytes: 0, written_bytes: 2, reads: 3, writes: 0 })].into();
    assert_eq!(read_json(update, &wanted), Ok(after));
    assert_eq!(read_json(json!({}), &wanted), Ok(wanted));
}

#[test]
fn what_is_wrong_is_named() {
    let none = json!({ "blockIO": { "throttleWriteBpsDevice": [{ "major": 4000, "minor": 7, "rate": 1 }] } });
    let error = read_json(none, &Throttles::new()).unwrap_err();
    assert!(
        error.starts_with("linux.resources.blockIO.throttleWriteBpsDevice[0]: the host has no block device 4000:7"),
        "{error}"
    );
    let negative = json!({ "blockIO": { "throttleReadIOPSDevice": [{ "major": -1, "minor": 7, "rate": 1 }] } });
    let error = read_json(negative, &Throttles::new()).unwrap_err();
    assert!(error.contains("throttleReadIOPSDevice[0]") && error.contains("MAJOR:MINOR"), "{error}");
    let Some(device) = some_device() else { return };
    for (line, why) in [
        (format!("{device} rbps"), "is not KEY=RATE"),
        (format!("{device} rbps=0"), "greater than 0"),
        (format!("{device} rbps=-5"), "greater than 0"),
        (format!("{device} speed=5"), "none of the keys"),
        ("sda rbps=5".to_owned(), "MAJOR:MINOR"),
    ] {
        let error = read_json(json!({ "unified": { "io.max": line } }), &Throttles::new()).unwrap_err();
        assert!(error.contains("io.max") && error.contains(why), "{line}: {error}");
    }
}
