//! IP from inside a container, or on the host.

use std::io::{self, Write};
use std::net::SocketAddr;

use husk_tests::{load, talk};

use crate::Report;
use crate::system::name;

fn say(report: &mut Report, key: &str, result: &io::Result<()>) {
    match result {
        Ok(()) => report.say(key, "ok"),
        // Those that the kernel has no number for say more by themselves.
        Err(cause) if cause.raw_os_error().is_none() => report.say(key, cause),
        Err(cause) => report.say(key, name(cause)),
    }
}

/// Where a server is; an address that is none fails each look.
fn server(address: &str, port: &str) -> SocketAddr {
    let whole = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
    whole.parse().unwrap_or_else(|_| SocketAddr::from(([0, 0, 0, 0], 0)))
}

fn serving() {
    let mut out = io::stdout();
    let _ = out.write_all(b"serving\n").and_then(|()| out.flush());
}

pub(crate) fn serve(port: &str, report: &mut Report) {
    say(report, "serve", &talk::serve(port.parse().unwrap_or(0), serving));
}

pub(crate) fn load(port: &str, report: &mut Report) {
    say(report, "load", &load::serve(port.parse().unwrap_or(0), serving));
}

pub(crate) fn talk(address: &str, port: &str, mebibytes: &str, report: &mut Report) {
    for (what, came) in talk::talk(server(address, port), mebibytes.parse().unwrap_or(0)) {
        say(report, &what, &came);
    }
}

pub(crate) fn many(address: &str, port: &str, count: &str, report: &mut Report) {
    say(report, "many", &talk::many(server(address, port), count.parse().unwrap_or(0)));
}

/// From the address of an interface; `by` is who has to answer, or `-`.
pub(crate) fn group(address: &str, interface: &str, port: &str, by: &str, report: &mut Report) {
    let index = std::fs::read_to_string(format!("/sys/class/net/{interface}/ifindex")).unwrap_or_default();
    let index = index.trim().parse().unwrap_or(0);
    let from = server(address, "0").ip();
    let by = (by != "-").then(|| server(by, "0").ip());
    say(report, "group", &talk::in_group(from, index, port.parse().unwrap_or(0), by, 1000));
}

pub(crate) fn whole(address: &str, port: &str, mtu: &str, report: &mut Report) {
    say(report, "whole", &talk::whole(server(address, port), mtu.parse().unwrap_or(0)));
}
