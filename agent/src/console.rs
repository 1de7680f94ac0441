//! The guest's console, for what ends the agent: its last words are the last thing that the shim can show.

use std::fmt::Display;

use rustix::fs::FileType;

/// Says why the agent ends, and waits until the serial port has sent it.
///
/// The kernel sends what a process writes there 16 bytes per interrupt, and its panic over the end of pid 1 does not wait for
/// the rest: without the wait a host that is slow with interrupts never sees the reason (drivers/tty/serial/8250/8250_port.c).
pub fn last_words(words: impl Display) {
    eprintln!("{words}");
    drain();
}

/// Lets a panic of the agent be read too: its report goes to the console like any last words.
pub fn drain_after_panics() {
    let report = std::panic::take_hook();
    let console = terminal();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        // A copy of the agent that becomes a container's process may have a terminal there whose reader takes for ever.
        if console.is_some() && terminal() == console {
            drain();
        }
    }));
}

/// The number of the device that standard error is.
fn terminal() -> Option<u64> {
    let found = rustix::fs::fstat(std::io::stderr()).ok()?;
    (FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice).then_some(found.st_rdev)
}

fn drain() {
    // Nothing is lost if it fails but what would have been lost anyway, and there is nobody left to tell.
    let _ = rustix::termios::tcdrain(std::io::stderr());
}
