//! Wrong OCI documents, by the thousand: a document in which much is set, with one value changed, goes through the checks of
//! shim and agent. Nothing may panic, hang, or be refused without the name of what is wrong.
//!
//! A document comes from a seed, so that a failure is made again by its number.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use husk_agent::container::{Place, Plan, Sources};
use husk_shim::task::document;
use oci_spec::runtime::Spec;
use serde_json::{Value, json};

/// A document with something of almost everything.
const WHOLE: &str = include_str!("../fuzz/seeds/document/whole.json");

fn whole() -> Value {
    serde_json::from_str(WHOLE).expect("the document is JSON")
}

/// Values that somebody may write.
fn nasty(random: &mut fastrand::Rng) -> Value {
    let text = |text: &str| Value::from(text);
    match random.u32(0..22) {
        0 => Value::Null,
        1 => json!(-1),
        2 => json!(0),
        3 => json!(i64::MIN),
        4 => json!(u64::MAX),
        5 => json!(1.5e300),
        6 => json!(true),
        7 => json!([]),
        8 => json!({}),
        9 => text(""),
        10 => text(".."),
        11 => text("/../../../etc"),
        12 => text("/proc/self/fd/3"),
        13 => text("a\0b"),
        14 => text("\u{202e}\u{1b}[31m"),
        15 => text(&"x".repeat(70_000)),
        16 => text("CAP_EVERYTHING"),
        17 => text("0-4294967296,7-3"),
        18 => json!(vec![Value::Null; 100]),
        19 => json!([[[[{ "a": [{}] }]]]]),
        20 => json!({ "type": "universe", "path": "/proc/1/ns/net" }),
        _ => json!(4_294_967_295_u64),
    }
}

/// The places of all values, each as the keys that lead there.
fn places(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let mut below = |key: String, value: &Value| {
        path.push(key);
        found.push(path.clone());
        places(value, path, found);
        path.pop();
    };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| below(key.clone(), value)),
        Value::Array(list) => list.iter().enumerate().for_each(|(at, value)| below(at.to_string(), value)),
        _ => {}
    }
}

/// Changes one value; says where.
fn change(document: &mut Value, random: &mut fastrand::Rng) -> Vec<String> {
    let mut all = Vec::new();
    places(document, &mut Vec::new(), &mut all);
    let place = all.swap_remove(random.usize(0..all.len()));
    let (Some((last, before)), pointer) = (place.split_last(), |keys: &[String]| {
        keys.iter().map(|key| format!("/{}", key.replace('~', "~0").replace('/', "~1"))).collect::<String>()
    }) else {
        return place;
    };
    let Some(parent) = document.pointer_mut(&pointer(before)) else { return place };
    let value = nasty(random);
    match (parent, random.u32(0..8)) {
        (Value::Object(map), 0) => {
            map.remove(last);
        }
        (Value::Object(map), 1) => {
            map.insert("nobodyKnows".to_owned(), value);
        }
        (Value::Object(map), _) => {
            map.insert(last.clone(), value);
        }
        (Value::Array(list), 0) => {
            let copy = list[0].clone();
            list.push(copy);
        }
        (Value::Array(list), _) => {
            if let Some(slot) = last.parse().ok().and_then(|at: usize| list.get_mut(at)) {
                *slot = value;
            }
        }
        _ => {}
    }
    place
}

/// What became of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is one that a container can be made of.
    Taken,
    /// It is refused, in these words.
    Refused(String),
}

/// What shim and agent say to a document.
///
/// # Errors
/// They do not agree, or have no end.
fn check(text: &[u8]) -> Result<Outcome, String> {
    let read = match document::read(text.to_vec()) {
        Ok(read) => read,
        Err(cause) => return refused(cause.to_string()),
    };
    // As the agent gets it.
    let spec: Spec =
        serde_json::from_slice(&read.text).map_err(|cause| format!("the agent cannot read it: {cause}"))?;
    let binds = spec.mounts().iter().flatten().enumerate().filter(|(_, mount)| {
        let options = mount.options().iter().flatten();
        mount.typ().as_deref() == Some("bind")
            || options.into_iter().any(|option| option == "rbind" || option == "bind")
    });
    let sources: Sources = binds.map(|(number, _)| (number, PathBuf::from("/usr"))).collect::<BTreeMap<_, _>>();
    Plan::new(spec, sources, Place::Guest).map_or_else(|cause| refused(cause.to_string()), |_| Ok(Outcome::Taken))
}

fn refused(words: String) -> Result<Outcome, String> {
    if words.len() > 4096 { Err(format!("the error has no end: {words}")) } else { Ok(Outcome::Refused(words)) }
}

/// Whatever it is, shim and agent have an answer to it.
///
/// # Panics
/// They have not.
pub fn is_answered(text: &[u8]) {
    if let Err(why) = check(text) {
        panic!("{why}");
    }
}

/// Makes the document of a seed and checks what becomes of it.
///
/// # Errors
/// What is wrong with the answer, and the document.
pub fn try_one(seed: u64) -> Result<Outcome, String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut document = whole();
    let place = change(&mut document, &mut random);
    let mut text = document.to_string();
    // Some are cut off, as by a disk that was full.
    if random.u32(0..20) == 0 {
        let mut end = random.usize(0..text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    let cut = text.len() < document.to_string().len();
    let failed = |what: &str| format!("seed {seed}, {}: {what}", place.join("."));
    let outcome = catch_unwind(AssertUnwindSafe(|| check(text.as_bytes()))).map_err(|_| failed("it panics"))?;
    let outcome = outcome.map_err(|why| failed(&why))?;
    if let Outcome::Refused(words) = &outcome {
        // The field, or what it is in; `linux` and `process` name nothing but themselves.
        let keys: Vec<&String> = place.iter().filter(|key| key.parse::<usize>().is_err()).collect();
        let says_little = |key: &str| ["linux", "process"].contains(&key);
        let mut names = keys.iter().rev().take(2).filter(|key| keys.len() == 1 || !says_little(key));
        if !cut && !names.any(|key| words.contains(key.as_str())) {
            return Err(failed(&format!("no name of it is in the error: {words}")));
        }
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_itself_is_taken() {
        assert_eq!(check(WHOLE.as_bytes()), Ok(Outcome::Taken));
    }

    #[test]
    fn wrong_documents_are_refused_by_name() {
        let outcomes: Vec<_> = (0..5000).map(try_one).collect();
        let wrong: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
        assert!(wrong.is_empty(), "{} of {}:\n{wrong:#?}", wrong.len(), outcomes.len());
        // Both happen, or nothing is tried.
        let refused = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Outcome::Refused(_)))).count();
        assert!((1000..4900).contains(&refused), "{refused} of {} were refused", outcomes.len());
    }
}
