//! A program of containers in tests: says what it sees, or tries what it must not be able to do. Everything it finds is a
//! line `key=value` of its standard output; what fails is said as the name of the error.
//!
//!   husk-test-probe report           all that a container's program can see of itself and of its container
//!   husk-test-probe attempts         ways out of the container, each with what it gave
//!   husk-test-probe hunt MARK        until MARK is there: what can be had of processes that are not the container's program yet
//!   husk-test-probe dial PORT...     connections to the host's vsock ports
//!   husk-test-probe flood COUNT PORT so many of them at once
//!   husk-test-probe serve PORT       says again what comes by TCP and UDP, also to groups, after a line `serving`
//!   husk-test-probe load PORT        takes, gives, answers and floods as clients ask, after a line `serving`
//!   husk-test-probe talk IP PORT MIB what comes back of a server, and of so many MiB
//!   husk-test-probe many IP PORT COUNT  so many connections to a server at once
//!   husk-test-probe whole IP PORT MTU   packets of this length, and no longer ones, go to a server as they are
//!   husk-test-probe frame INTERFACE MAC  a frame to everybody in the name of this address
//!   husk-test-probe group IP INTERFACE PORT BY  what is sent to a group from this address comes back, from BY or (-) from anybody else
//!   husk-test-probe fork             as many processes as there can be
//!   husk-test-probe eat              as much memory as there is

mod attempts;
mod calls;
mod files;
mod hunt;
mod network;
mod process;
mod sockets;
mod system;

use std::io::Write;
use std::process::ExitCode;

/// What was found, in its order.
#[derive(Default)]
struct Report {
    lines: Vec<(String, String)>,
}

impl Report {
    /// One more line.
    fn say(&mut self, key: &str, value: impl ToString) {
        self.lines
            .push((key.replace('=', "%3d").replace('\n', "\\n"), value.to_string().trim_end().replace('\n', "\\n")));
    }

    /// One more line, of what may have failed.
    fn say_or<T: ToString>(&mut self, key: &str, value: std::io::Result<T>) {
        match value {
            Ok(value) => self.say(key, value),
            Err(cause) => self.say(key, system::name(&cause)),
        }
    }

    fn print(&self) -> ExitCode {
        let text: String = self.lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        }
    }
}

fn main() -> ExitCode {
    let mut report = Report::default();
    let words: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match &words[1..] {
        ["report", ..] => {
            process::see(&mut report);
            files::see(&mut report);
            calls::see(&mut report);
        }
        ["attempts"] => attempts::make(&mut report),
        ["hunt", mark] => hunt::until(mark, &mut report),
        ["dial", ports @ ..] => sockets::dial_each(ports, &mut report),
        ["flood", count, port] => sockets::flood(count, port, &mut report),
        ["serve", port] => network::serve(port, &mut report),
        ["load", port] => network::load(port, &mut report),
        ["talk", address, port, mebibytes] => network::talk(address, port, mebibytes, &mut report),
        ["many", address, port, count] => network::many(address, port, count, &mut report),
        ["frame", interface, source] => network::frame(interface, source, &mut report),
        ["group", address, interface, port, by] => network::group(address, interface, port, by, &mut report),
        ["whole", address, port, mtu] => network::whole(address, port, mtu, &mut report),
        ["fork"] => report.say_or("processes", system::fork_all()),
        ["eat"] => system::eat(),
        _ => {
            eprintln!("husk-test-probe: {words:?}: unknown");
            return ExitCode::from(2);
        }
    }
    report.print()
}
