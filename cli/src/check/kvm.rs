//! KVM: is it there, may it be used, what can it do, and does it really.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::guest::{Report, judge};
use super::{PROBE, Point};
use crate::host::Host;
use crate::process::Answer;

/// Time for the test guest, which takes milliseconds; a host that is emulated itself takes half a second.
const LIMIT: Duration = Duration::from_secs(10);

const ELSEWHERE: &str = "use a host with hardware virtualisation: bare metal, or a virtual machine with nested \
                         virtualisation switched on";

/// The points about KVM. Each stands on the one before.
pub fn points(host: &Host) -> Vec<Point> {
    let device = match open(host) {
        Ok(device) => device,
        Err(point) => return vec![*point],
    };
    let path = host.dev_kvm.display();
    let opened = Point::ok("kvm.device", format!("{path} is there and opens for reading and writing"));
    let (reports, ending) = match ask(device) {
        Ok(answer) => answer,
        Err(cause) => {
            let what = format!("the test guest's process cannot be started: {cause}");
            return vec![opened, Point::unknown("kvm.guest", what, "see why no process can be started on this host")];
        }
    };
    [vec![opened], judged(&reports, &ending)].concat()
}

/// The device, or why not.
fn open(host: &Host) -> Result<File, Box<Point>> {
    let path = &host.dev_kvm;
    let name = "kvm.device";
    let failed = |what: String, remedy: String| Box::new(Point::failed(name, what, remedy));
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.file_type().is_char_device() => {
            let remedy = format!("remove it, and load the module: modprobe {}", module(&host.proc));
            return Err(failed(format!("{shown} is not a device"), remedy));
        }
        _ => {}
    }
    let cause = match OpenOptions::new().read(true).write(true).open(path) {
        Ok(device) => return Ok(device),
        Err(cause) => cause,
    };
    Err(match cause.kind() {
        ErrorKind::NotFound => absent(host),
        ErrorKind::PermissionDenied => {
            let owner = std::fs::metadata(path).map_or_else(
                |_| String::new(),
                |metadata| {
                    format!(" (owner {}, group {}, mode {:o})", metadata.uid(), metadata.gid(), metadata.mode() & 0o777)
                },
            );
            let who = rustix::process::geteuid().as_raw();
            let what = format!("{shown} must not be opened by user {who}{owner}");
            let remedy = if who == 0 {
                "root is kept from it by something else than its mode: a container's device rules, or a security module"
            } else {
                "containerd runs as root, so try again as root: sudo husk check"
            };
            failed(what, remedy.to_owned())
        }
        _ => failed(
            format!("{shown} does not open: {cause}"),
            "look into the kernel's log (dmesg) for what kvm says, and see that no other hypervisor has the processor"
                .to_owned(),
        ),
    })
}

/// Why there is no device: the processor cannot, or nobody has loaded the module.
fn absent(host: &Host) -> Box<Point> {
    let shown = host.dev_kvm.display();
    let (what, remedy) = match cpu_feature(&host.proc) {
        Some(feature) => (
            format!("{shown} is not there, though the processor has {feature}"),
            format!("load the module: modprobe {}; in a container: pass the device through", module(&host.proc)),
        ),
        None => (
            format!("{shown} is not there, and the processor shows neither vmx (Intel) nor svm (AMD)"),
            "switch virtualisation on in the firmware (VT-x, AMD-V); on a virtual machine: switch on nested \
             virtualisation for it"
                .to_owned(),
        ),
    };
    Box::new(Point::failed("kvm.device", what, remedy))
}

/// The processor's feature for virtualisation, as `/proc/cpuinfo` says it.
pub fn cpu_feature(proc: &Path) -> Option<&'static str> {
    let text = std::fs::read_to_string(proc.join("cpuinfo")).ok()?;
    let flags = text.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"].into_iter().find(|feature| flags.split_whitespace().any(|flag| flag == *feature))
}

fn module(proc: &Path) -> &'static str {
    if cpu_feature(proc) == Some("svm") { "kvm_amd" } else { "kvm_intel" }
}

/// Runs the test guest in a process of its own; returns what that said, and how it came to its end.
fn ask(device: File) -> io::Result<(Vec<Report>, String)> {
    // This very program, even if its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.args(["check", PROBE]).stdin(device);
    let answer = Answer::of(&mut command, LIMIT)?;
    let lines = answer.output.split(|byte| *byte == b'\n');
    Ok((lines.filter_map(|line| serde_json::from_slice(line).ok()).collect(), answer.ending.to_string()))
}

/// What the test guest's reports mean.
fn judged(reports: &[Report], ending: &str) -> Vec<Point> {
    let mut points = Vec::new();
    let mut ports = Vec::new();
    let mut ending = ending.to_owned();
    let mut usable = false;
    for report in reports {
        match report {
            Report::Version(version) => {
                let what = format!("the device answers with version {version} of KVM's interface instead of 12");
                points.push(Point::failed("kvm.capabilities", what, ELSEWHERE));
                return points;
            }
            Report::Lacks { required, optional } => {
                points.push(capabilities(required));
                points.push(optional_capabilities(optional));
                if !required.is_empty() {
                    return points;
                }
                usable = true;
            }
            Report::Enters => {}
            Report::Port(port, value) => ports.push((*port, *value)),
            Report::Fails(cause) => ending.clone_from(cause),
        }
    }
    let name = "kvm.guest";
    points.push(match judge(&ports, &ending) {
        None => Point::ok(name, "a guest goes to ring 3, makes a system call and comes back".to_owned()),
        // It has not come so far as to say what KVM can do.
        Some(_) if !usable => Point::failed(name, format!("KVM does not answer: {ending}"), ELSEWHERE),
        Some(why) => Point::failed(name, format!("opens, but cannot run a guest: {why}"), ELSEWHERE),
    });
    points
}

fn capabilities(missing: &[String]) -> Point {
    let name = "kvm.capabilities";
    if missing.is_empty() {
        let all: Vec<&str> = husk_vmm::kvm::REQUIRED.iter().map(|capability| short(capability.name)).collect();
        return Point::ok(name, format!("all that husk needs: {}", all.join(" ")));
    }
    let why = |name: &String| {
        let known = husk_vmm::kvm::REQUIRED.iter().find(|capability| capability.name == name);
        known.map_or_else(|| name.clone(), |capability| format!("{name} ({})", capability.why))
    };
    let missing: Vec<String> = missing.iter().map(why).collect();
    Point::failed(name, format!("this KVM lacks {}", missing.join(", ")), "use a newer kernel, or another host")
}

fn optional_capabilities(missing: &[(String, String)]) -> Point {
    let name = "kvm.optional";
    if missing.is_empty() {
        let all: Vec<&str> = husk_vmm::kvm::OPTIONAL.iter().map(|capability| short(capability.name)).collect();
        return Point::ok(name, format!("all that husk is better with: {}", all.join(" ")));
    }
    let missing: Vec<String> = missing.iter().map(|(name, without)| format!("{name} ({without})")).collect();
    Point::warning(
        name,
        format!("this KVM lacks {}", missing.join(", ")),
        "a newer kernel may have it; husk works without",
    )
}

fn short(name: &str) -> &str {
    name.strip_prefix("KVM_CAP_").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use crate::check::guest::EXPECTED;

    fn state_of(points: &[Point], name: &str) -> State {
        points.iter().find(|point| point.name == name).unwrap().state
    }

    fn host(cpuinfo: &str) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for directory in ["dev", "proc"] {
            std::fs::create_dir(root.path().join(directory)).unwrap();
        }
        std::fs::write(root.path().join("proc/cpuinfo"), cpuinfo).unwrap();
        let host = Host::below(root.path());
        (root, host)
    }

    #[test]
    fn a_missing_device_has_its_reason() {
        let (_root, with) = host("processor : 0\nflags\t\t: fpu svm nx\n");
        let point = &points(&with)[0];
        assert_eq!((point.name, point.state), ("kvm.device", State::Failed));
        assert!(point.what.contains("svm") && point.remedy.as_ref().unwrap().contains("modprobe kvm_amd"), "{point:?}");
        let (_root, without) = host("flags : fpu nx\n");
        let point = &points(&without)[0];
        assert!(point.what.contains("neither vmx"), "{point:?}");
        assert!(point.remedy.as_ref().unwrap().contains("firmware"), "{point:?}");
    }

    #[test]
    fn a_file_is_not_a_device() {
        let (_root, host) = host("flags : vmx\n");
        std::fs::write(&host.dev_kvm, "").unwrap();
        assert!(points(&host)[0].what.contains("not a device"));
    }

    fn able() -> Vec<Report> {
        let lacks = Report::Lacks { required: Vec::new(), optional: Vec::new() };
        let ports = EXPECTED.into_iter().map(|(port, value)| Report::Port(port, value));
        [lacks, Report::Enters].into_iter().chain(ports).collect()
    }

    #[test]
    fn a_working_kvm_passes() {
        let points = judged(&able(), "its process ended");
        assert!(points.iter().all(|point| point.state == State::Ok), "{points:?}");
        assert_eq!(points.len(), 3);
    }

    #[test]
    fn capabilities_that_are_missing_are_named() {
        let lacks = Report::Lacks {
            required: vec!["KVM_CAP_IRQFD".to_owned()],
            optional: vec![("KVM_CAP_TSC_DEADLINE_TIMER".to_owned(), "slower".to_owned())],
        };
        let points = judged(&[lacks], "its process ended");
        assert_eq!(state_of(&points, "kvm.capabilities"), State::Failed);
        assert!(points[0].what.contains("KVM_CAP_IRQFD (a device interrupts"), "{points:?}");
        assert_eq!(state_of(&points, "kvm.optional"), State::Warning);
        assert!(!points.iter().any(|point| point.name == "kvm.guest"));
    }

    #[test]
    fn a_guest_that_does_not_come_back_is_told() {
        let mut reports = able();
        reports.truncate(4);
        let points = judged(&reports, "nothing more came in 5 s");
        let guest = points.last().unwrap();
        assert_eq!(guest.state, State::Failed);
        assert!(guest.what.contains("make a system call") && guest.what.contains("5 s"), "{guest:?}");
        reports.push(Report::Fails("KVM: cannot run the vCPU: Bad address".to_owned()));
        assert!(judged(&reports, "its process ended").last().unwrap().what.contains("Bad address"));
        assert!(judged(&[], "its process was killed by signal 9")[0].what.contains("does not answer"));
        assert!(judged(&[Report::Version(3)], "")[0].what.contains("version 3"));
    }
}
