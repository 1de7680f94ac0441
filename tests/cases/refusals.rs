//! Documents that cannot be, given to the shim itself, because `ctr` reads them first: each is refused by the name of its field, and
//! leaves nothing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse};
use husk_tests::host::leaves_nothing;
use husk_tests::sequences::place::{Place, left};
use husk_tests::sequences::server::Recorder;
use husk_tests::sequences::shim::{Shim, make_bundle};
use husk_tests::sequences::step::{Process, Program};
use serde_json::{Value, json};

/// What Create of a container with this `config.json` answers; and what is left afterwards.
async fn created(place: &Place, id: &str, document: &str) -> (ttrpc::Result<CreateTaskResponse>, String) {
    let bundle = make_bundle(place.path(), id, &Value::Null);
    fs::write(bundle.join("config.json"), document).unwrap();
    let socket = place.path().join(format!("{id}.sock"));
    let recorder = Recorder::start(&socket).await;
    let shim = Shim::start(Path::new("/usr/bin/containerd-shim-husk-v2"), id, &bundle, &socket).await.unwrap();
    let request = CreateTaskRequest {
        id: id.to_owned(),
        bundle: bundle.to_str().unwrap().to_owned(),
        ..CreateTaskRequest::default()
    };
    let answer = shim.call("Create", &request, Duration::from_secs(60)).await;
    let deleted = shim.delete().await;
    assert!(deleted.starts_with("OK"), "{id}: {deleted}");
    recorder.stop().await;
    fs::remove_dir_all(&bundle).unwrap();
    let _ = fs::remove_file(socket);
    (answer, left(id))
}

/// A change of the document, and what the refusal says.
type Row = (&'static str, fn(&mut Value), &'static [&'static str]);

const ROWS: [Row; 17] = [
    ("version", |d| d["ociVersion"] = 7.into(), &["ociVersion: invalid type"]),
    (
        "limit-type",
        |d| d["linux"]["resources"]["memory"] = json!({ "limit": "1g" }),
        &["linux.resources.memory.limit: "],
    ),
    (
        "limit-negative",
        |d| d["linux"]["resources"]["pids"] = json!({ "limit": -5 }),
        &["linux.resources.pids.limit -5"],
    ),
    ("limit-absurd", |d| d["linux"]["resources"]["cpu"] = json!({ "quota": 1 }), &["linux.resources.cpu.quota 1"]),
    (
        "rlimit",
        |d| d["process"]["rlimits"] = json!([{ "type": "RLIMIT_X", "soft": 1, "hard": 1 }]),
        &["process.rlimits[0].type: "],
    ),
    (
        "rlimit-negative",
        |d| d["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": -1, "hard": 1 }]),
        &["process.rlimits[0].soft: "],
    ),
    (
        "rlimit-above",
        |d| d["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 2, "hard": 1 }]),
        &["process.rlimits RLIMIT_NOFILE", "Invalid argument"],
    ),
    (
        "namespace",
        |d| d["linux"]["namespaces"][0]["type"] = "universe".into(),
        &["linux.namespaces[0].type: unknown variant `universe`"],
    ),
    (
        "namespace-twice",
        |d| {
            let namespaces = d["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(namespaces[0].clone());
        },
        &["linux.namespaces: pid: is there twice"],
    ),
    (
        "hostname",
        |d| {
            d["hostname"] = "x".into();
            d["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "uts");
        },
        &["hostname: the document has no UTS namespace"],
    ),
    ("sysctl", |d| d["linux"]["sysctl"] = json!({ "kernel.panic": "1" }), &["linux.sysctl", "kernel.panic"]),
    ("cwd", |d| d["process"]["cwd"] = "here".into(), &["process.cwd \"here\""]),
    ("mount-up", |d| add(d, json!({ "destination": "/a/../../b", "type": "tmpfs" })), &["mounts[", "/a/../../b", ".."]),
    (
        "mount-source",
        |d| add(d, json!({ "destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"] })),
        &["mounts[", "/no/such"],
    ),
    ("mount-kind", |d| add(d, json!({ "destination": "/x", "type": "nosuchfs" })), &["mounts[", "nosuchfs", "/x"]),
    (
        "mount-mapped",
        |d| {
            let mappings = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
            add(d, json!({ "destination": "/x", "type": "tmpfs", "uidMappings": mappings, "gidMappings": mappings }));
        },
        &["mounts[", "/x", "only a bind mount"],
    ),
    ("mount-proc", |d| add(d, json!({ "destination": "/proc/self/x", "type": "tmpfs" })), &["mounts[", "/proc/self/x"]),
];

fn add(document: &mut Value, mount: Value) {
    document["mounts"].as_array_mut().unwrap().push(mount);
}

#[test]
fn a_document_that_cannot_be_is_refused_by_its_field() {
    leaves_nothing(|| {
        let place = Place::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let whole = |id: &str| place.spec(id, Process { program: Program::True, terminal: false, stdin: false });
        let refused = |name: &str, document: &str, words: &[&str]| {
            let id = format!("refused-{name}");
            let (answer, left) = runtime.block_on(created(&place, &id, document));
            let cause = match answer.expect_err(name) {
                ttrpc::Error::RpcStatus(status) => status.message().to_owned(),
                other => panic!("{name}: {other}"),
            };
            println!("    {name}: {cause}");
            for word in words {
                assert!(cause.contains(word), "{name}: {word:?} is not in: {cause}");
            }
            assert_eq!(left, "nothing", "{name}");
        };
        let text = whole("refused-truncated").to_string();
        refused("truncated", &text[..text.len() / 2], &["config.json", "EOF while parsing"]);
        refused("list", "[]", &["config.json", "invalid type: list"]);
        refused("nothing", "", &["config.json", "EOF while parsing"]);
        for (name, change, words) in ROWS {
            let mut document = whole(&format!("refused-{name}"));
            change(&mut document);
            refused(name, &document.to_string(), words);
        }
        // The same without a change is none of them.
        let id = "refused-none";
        let (answer, left) = runtime.block_on(created(&place, id, &whole(id).to_string()));
        assert!(answer.is_ok_and(|created| created.pid > 0) && left == "nothing", "{left}");
    });
}
