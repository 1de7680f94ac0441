//! Documents that are large: what a kernel takes is taken, and the rest is refused by name.

use husk_tests::ctr::{Output, Runtime, ctr};
use husk_tests::host::leaves_nothing;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::document::document;
use crate::{busybox, refused};

fn run(runtime: Runtime, root: &TempDir, change: impl FnOnce(&mut Value)) -> Output {
    let id = format!("large-{}", if runtime == Runtime::Husk { "husk" } else { "runc" });
    let file = document(root.path(), "true", |document| {
        document["linux"]["cgroupsPath"] = format!("/default/{id}").into();
        change(document);
    });
    ctr(&["run", "--rm", "--runtime", runtime.name(), "--config", file.path().to_str().unwrap(), &id])
}

/// Arguments of so many KiB in all. One may have 128 KiB (MAX_ARG_STRLEN, linux/binfmts.h).
fn arguments(document: &mut Value, kib: usize) {
    let long = "x".repeat(100 << 10);
    let mut all = vec![json!("/bin/sh"), json!("-c"), json!("echo $# ${#1}"), json!("sh")];
    all.extend(std::iter::repeat_n(json!(long), kib / 100));
    document["process"]["args"] = all.into();
}

#[test]
fn arguments_are_taken_up_to_the_kernels_limit() {
    leaves_nothing(|| {
        let root = busybox();
        for runtime in [Runtime::Runc, Runtime::Husk] {
            // A quarter of the stack's limit of 8 MiB (execve(2)).
            let taken = run(runtime, &root, |document| arguments(document, 1900));
            assert_eq!((taken.status, taken.text().as_str()), (0, "19 102400\n"), "{}", taken.errors());
            let refused_by_kernel = run(runtime, &root, |document| arguments(document, 3 << 10));
            refused(&refused_by_kernel, &["argument list too long"]);
        }
    });
}

#[test]
fn a_document_is_taken_up_to_what_a_message_holds() {
    leaves_nothing(|| {
        let root = busybox();
        let annotated = |bytes: usize| {
            run(Runtime::Husk, &root, |document| {
                document["annotations"] = json!({ "husk.test/long": "x".repeat(bytes) })
            })
        };
        assert_eq!(annotated(3 << 20).status, 0);
        refused(&annotated(5 << 20), &["config.json has 52", "bytes, and husk takes up to 4128768"]);
    });
}

#[test]
fn ten_thousand_mounts() {
    leaves_nothing(|| {
        let root = busybox();
        let many = |mount: Value| {
            run(Runtime::Husk, &root, |document| {
                document["process"]["args"] = json!(["/bin/sh", "-c", "grep -c ' /m' /proc/mounts"]);
                let mounts = document["mounts"].as_array_mut().unwrap();
                mounts.extend((0..10_000).map(|number| {
                    let mut mount = mount.clone();
                    mount["destination"] = format!("/m/{number}").into();
                    mount
                }));
            })
        };
        let made = many(json!({ "type": "tmpfs", "source": "tmpfs", "options": ["size=4k"] }));
        assert_eq!((made.status, made.text().as_str()), (0, "10000\n"), "{}", made.errors());
        refused(
            &many(json!({ "type": "bind", "source": "/etc", "options": ["bind", "ro"] })),
            &["mounts: 10000 bind mounts, and husk shares 1024 with a container at most"],
        );
    });
}
