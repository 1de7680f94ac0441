//! What cannot be is refused in words, and leaves nothing.

use std::fs;
use std::io::Write;

use husk_tests::ctr::Run;
use husk_tests::host::leaves_nothing;

use crate::{busybox, configured, refused};

#[test]
fn a_missing_program_is_named() {
    leaves_nothing(|| {
        let root = busybox();
        refused(&Run::on_directory("missing", root.path()).run(&["/bin/nosuch"]), &["/bin/nosuch", "no such file"]);
        refused(
            &Run::on_directory("inpath", root.path()).run(&["nosuch"]),
            &["nosuch", "executable file not found in $PATH"],
        );
    });
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    leaves_nothing(|| {
        let root = busybox();
        fs::write(root.path().join("bin/text"), "no program\n").unwrap();
        refused(&Run::on_directory("text", root.path()).run(&["/bin/text"]), &["/bin/text", "permission denied"]);
        fs::File::create(root.path().join("bin/junk")).unwrap().write_all(b"\x7fELFjunk").unwrap();
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(root.path().join("bin/junk"), fs::Permissions::from_mode(0o755)).unwrap();
        refused(&Run::on_directory("junk", root.path()).run(&["/bin/junk"]), &["/bin/junk", "exec format error"]);
    });
}

#[test]
fn a_guest_that_panics_at_boot_is_told_with_its_last_lines() {
    leaves_nothing(|| {
        let root = busybox();
        let (output, _) =
            configured("panic", root.path(), "[vm]\nkernel_cmdline = \"rdinit=/nosuch root=/dev/none\"\n");
        refused(&output, &["reset itself", "Kernel panic"]);
    });
}

#[test]
fn a_guest_that_is_not_ready_in_time_is_ended() {
    leaves_nothing(|| {
        let root = busybox();
        // A kernel that panics and then stays as it is.
        let text = "[vm]\nkernel_cmdline = \"rdinit=/nosuch root=/dev/none panic=0\"\n[limits]\nready_s = 5\n";
        let (output, _) = configured("late", root.path(), text);
        refused(&output, &["did not become ready in 5 s", "its machine is", "limits.ready_s", "Kernel panic"]);
    });
}
