//! What a pod's network asks of the host, tried in a network namespace of its own. A pod without interfaces needs none of it.

use std::io;

use husk_shim::network::trial::{Trial, trial};

use super::{AS_ROOT, Point};

const NAMES: [&str; 3] = ["network.tap", "network.redirect", "network.localhost"];

/// The points about the network.
pub fn points() -> Vec<Point> {
    match trial() {
        Ok(trial) => judged(&trial),
        Err(cause) => untried(&cause, rustix::process::geteuid().is_root()),
    }
}

/// There is no namespace to try anything in.
fn untried(cause: &io::Error, is_root: bool) -> Vec<Point> {
    let point = |name| {
        if cause.kind() == io::ErrorKind::PermissionDenied && !is_root {
            return Point::unknown(name, "only root may make a network namespace to try it in", AS_ROOT);
        }
        let what = format!("not tried, because no network namespace can be made: {cause}");
        Point::warning(name, what, "run containerd where it may make namespaces: with CAP_SYS_ADMIN")
    };
    NAMES.map(point).into()
}

fn judged(trial: &Trial) -> Vec<Point> {
    let [tap, redirect, localhost] = NAMES;
    vec![
        match &trial.tap {
            Ok(()) => Point::ok(tap, "taps can be made with /dev/net/tun"),
            Err(cause) => Point::warning(
                tap,
                format!("no tap can be made with /dev/net/tun: {cause}; only pods without network interfaces run"),
                "load the module (modprobe tun); in a container: pass the device through, and give it CAP_NET_ADMIN",
            ),
        },
        match &trial.redirect {
            Ok(()) => Point::ok(redirect, "packets can be redirected (clsact, matchall, mirred)"),
            Err(cause) => Point::warning(
                redirect,
                format!(
                    "packets cannot be redirected (clsact, matchall, mirred): {cause}; only pods without network interfaces run"
                ),
                "load the modules (modprobe -a sch_ingress cls_matchall act_mirred), or use a kernel that has them",
            ),
        },
        match &trial.localhost {
            Ok(()) => Point::ok(localhost, "localhost of a pod's namespace can reach its guest (SK_LOOKUP)"),
            Err(cause) => Point::warning(
                localhost,
                format!("{cause}; kubectl port-forward needs it"),
                "use Linux 5.9 or newer with CONFIG_BPF_SYSCALL, or set network.localhost_connections = 0",
            ),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::State;
    use husk_shim::network::localhost::LocalhostError;

    fn states(points: &[Point]) -> Vec<State> {
        points.iter().map(|point| point.state).collect()
    }

    #[test]
    fn what_is_missing_is_named_and_keeps_no_pod_from_running() {
        let good = Trial { tap: Ok(()), redirect: Ok(()), localhost: Ok(()) };
        assert_eq!(states(&judged(&good)), [State::Ok; 3]);
        let cause = || io::Error::from_raw_os_error(libc::ENOENT);
        let bad = Trial {
            tap: Err(cause()),
            redirect: Err(cause().into()),
            localhost: Err(LocalhostError::Bpf { what: "load the program", cause: cause() }),
        };
        let points = judged(&bad);
        assert_eq!(states(&points), [State::Warning; 3]);
        for (point, words) in points.iter().zip(["/dev/net/tun", "matchall", "bpf(2) does not load the program"]) {
            assert!(point.what.contains(words) && point.what.contains("No such file"), "{point:?}");
        }
    }

    #[test]
    fn without_a_namespace_nothing_is_known() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(states(&untried(&denied(), false)), [State::Unknown; 3]);
        assert_eq!(states(&untried(&denied(), true)), [State::Warning; 3]);
        assert_eq!(states(&untried(&io::Error::from_raw_os_error(libc::ENOSPC), true)), [State::Warning; 3]);
    }

    #[test]
    fn this_host_is_tried() {
        let names: Vec<_> = points().iter().map(|point| point.name).collect();
        assert_eq!(names, NAMES);
    }
}
