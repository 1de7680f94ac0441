//! The form `ctr run IMAGE`, on the overlayfs snapshotter.

use husk_tests::ctr::{Run, Runtime, deleted_with, must, wait_for_state};
use husk_tests::host::leaves_nothing;
use husk_tests::rootfs::import;

use crate::busybox;

const IMAGE: &str = "localhost/husk-test:latest";

/// The image stays for all cases: containerd unpacks it once.
fn image() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        import(IMAGE, busybox().path());
        // Unpacked here, so that no case counts the image's snapshot as its own.
        let output = Run::of_image("unpack", IMAGE).runtime(Runtime::Runc).run(&["true"]);
        assert_eq!(output.status, 0, "{}", output.errors());
    });
}

#[test]
fn an_image_runs_with_its_own_settings() {
    image();
    leaves_nothing(|| {
        let output = Run::of_image("image", IMAGE).run(&["sh", "-c", "echo $FROM_IMAGE; pwd; mount | grep ' / '"]);
        let text = output.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((output.status, &lines[..2]), (0, &["yes", "/root"][..]), "{text}{}", output.errors());
        assert!(lines[2].contains("virtiofs"), "{text}");
    });
}

#[test]
fn changes_stay_in_the_containers_layer() {
    image();
    leaves_nothing(|| {
        let script =
            "echo new >/new; rm /etc/group; echo more >>/etc/passwd; mkdir -p /a/b; mv /etc/passwd /a/b/; ls /a/b /new";
        let output = Run::of_image("layer", IMAGE).run(&["sh", "-c", script]);
        assert_eq!((output.status, &*output.text()), (0, "/new\n\n/a/b:\npasswd\n"), "{}", output.errors());
        let output = Run::of_image("layer2", IMAGE).run(&["sh", "-c", "ls /etc/group /etc/passwd /new"]);
        assert_eq!((output.status, &*output.text()), (1, "/etc/group\n/etc/passwd\n"), "{}", output.errors());
    });
}

#[test]
fn the_native_snapshotter_works_too() {
    image();
    let native = ["--snapshotter", "native"];
    // Unpacked here, as above.
    let output = Run::of_image("unpack2", IMAGE).flags(&native).runtime(Runtime::Runc).run(&["true"]);
    assert_eq!(output.status, 0, "{}", output.errors());
    leaves_nothing(|| {
        let run = Run::of_image("native", IMAGE).flags(&native);
        let output = run.run(&["sh", "-c", "echo $FROM_IMAGE >/new; cat /new"]);
        assert_eq!((output.status, &*output.text()), (0, "yes\n"), "{}", output.errors());
    });
}

#[test]
fn a_detached_container_of_an_image() {
    image();
    leaves_nothing(|| {
        must(&["run", "-d", "--runtime", "io.containerd.husk.v2", IMAGE, "detached", "sh", "-c", "exit 12"]);
        wait_for_state("detached", "STOPPED");
        assert_eq!(deleted_with("detached", &[]), 12);
        must(&["container", "delete", "detached"]);
    });
}
