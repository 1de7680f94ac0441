//! What `husk-agent oci` tells of a container and of itself, in runc's words.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use husk_tests::host::leaves_nothing;
use serde_json::{Value, json};

use super::{BOTH, Bundle, same};

#[test]
fn limits_are_set_and_changed() {
    leaves_nothing(|| {
        let read = |bundle: &Bundle| {
            ["memory.max", "pids.max", "cpu.max", "cpu.weight"]
                .map(|file| fs::read_to_string(bundle.cgroup().join(file)).unwrap())
        };
        let limits = same(|runtime| {
            let bundle = Bundle::new(runtime, "exec sleep 1000", |document| {
                document["linux"]["resources"] = json!({
                    "memory": { "limit": 67_108_864 }, "pids": { "limit": 33 },
                    "cpu": { "shares": 512, "quota": 50_000, "period": 100_000 }
                });
            });
            let id = bundle.id();
            bundle.must(&["run", "-d", id]);
            let first = read(&bundle);
            bundle.must(&["update", "--memory", "32m", "--pids-limit", "44", id]);
            let second = read(&bundle);
            fs::write(bundle.file("new"), json!({ "cpu": { "quota": 20_000, "period": 50_000 } }).to_string()).unwrap();
            bundle.must(&["update", "-r", "new", id]);
            let stats: Value = serde_json::from_str(&bundle.must(&["events", "--stats", id])).unwrap();
            let stats = [&stats["type"], &stats["data"]["pids"]["limit"], &stats["data"]["memory"]["usage"]["limit"]]
                .map(Value::clone);
            let third = read(&bundle);
            bundle.must(&["delete", "-f", id]);
            (first, second, third, stats)
        });
        assert_eq!(limits.1[..2], ["33554432\n", "44\n"]);
        assert_eq!((limits.2[2].as_str(), limits.3), ("20000 50000\n", [json!("stats"), json!(44), json!(33_554_432)]));
    });
}

#[test]
fn numbers_are_told_again_until_the_end() {
    leaves_nothing(|| {
        let told = same(|runtime| {
            let bundle = Bundle::new(runtime, "exec sleep 1000", |_| {});
            let id = bundle.id();
            bundle.must(&["run", "-d", id]);
            let mut events = bundle.command(&["events", "--interval", "100ms", id]);
            let mut events = events.stdout(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
            let first: Vec<Value> =
                lines.by_ref().take(3).map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
            bundle.must(&["kill", id, "KILL"]);
            // Its end is theirs. (A time limit would be a failure.)
            for line in lines {
                let _ = line.unwrap();
            }
            let ended = events.wait().unwrap().success();
            bundle.must(&["delete", id]);
            let told = first.iter().map(|line| (line["type"].clone(), line["id"] == id));
            (told.collect::<Vec<_>>(), ended)
        });
        assert_eq!(told, (vec![(json!("stats"), true); 3], true));
    });
}

/// What runc says it can do is not missing in these lists, but for what asks a program of the host. (That what husk says is taken is
/// a unit test of the agent.)
#[test]
fn what_it_can_do_is_told_in_runcs_words() {
    let told =
        |runtime| -> Value { serde_json::from_str(&Bundle::new(runtime, "true", |_| {}).must(&["features"])).unwrap() };
    let [runc, husk] = BOTH.map(told);
    assert_eq!(husk["ociVersionMin"], runc["ociVersionMin"]);
    let words = |document: &Value, at: &str| -> BTreeSet<String> {
        let list = document.pointer(at).and_then(Value::as_array).unwrap_or_else(|| panic!("no {at} in {document}"));
        list.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    for (at, without) in [
        ("/hooks", &[][..]),
        ("/linux/namespaces", &[]),
        ("/linux/capabilities", &[]),
        ("/linux/seccomp/actions", &["SCMP_ACT_NOTIFY"]),
        ("/linux/seccomp/operators", &[]),
    ] {
        let mut missing: Vec<String> = words(&runc, at).difference(&words(&husk, at)).cloned().collect();
        missing.retain(|word| !without.contains(&&**word));
        assert_eq!(missing, [""; 0], "{at}");
    }
    assert!(words(&husk, "/linux/seccomp/archs").contains("SCMP_ARCH_X86_64"), "{husk}");
    assert!(!words(&husk, "/linux/seccomp/actions").contains("SCMP_ACT_NOTIFY"), "{husk}");
    assert_eq!((&husk["linux"]["cgroup"]["v2"], &husk["linux"]["seccomp"]["enabled"]), (&json!(true), &json!(true)));
}
