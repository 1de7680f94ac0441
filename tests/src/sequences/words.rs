//! Answers and events in words that are the same for every run: ids, pids and paths become what they stand for.

use std::collections::HashMap;

use containerd_shim_protos::api::{PidsResponse, StateResponse, StatsResponse};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::events::task::{
    TaskCheckpointed, TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};

/// What a client decides by in the words of an error; the code says the rest.
const PHRASES: [&str; 2] = ["already finished", "no such file or directory"];
/// A call that was not answered: its time is over, or the connection is.
pub const NO_ANSWER: &str = "NO ANSWER";
/// Go's zero time, in seconds before 1970.
const YEAR_ONE: i64 = -62_135_596_800;

/// The names of one container.
#[derive(Debug, Clone, Default)]
pub struct Names {
    /// The container's id.
    pub id: String,
    /// The container's directory.
    pub bundle: String,
    /// Whose pid this is; an id that was used again has the later one's.
    pub pids: HashMap<u32, String>,
}

/// A call's outcome: what is compared, and what people may want to read too.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Compared.
    pub text: String,
    /// The error's words.
    pub words: String,
}

impl Answer {
    /// Success, with what came.
    #[must_use]
    pub fn ok(fields: &[String]) -> Self {
        let mut text = "OK".to_owned();
        for field in fields.iter().filter(|field| !field.is_empty()) {
            text.push(' ');
            text.push_str(field);
        }
        Self { text, words: String::new() }
    }

    /// Whether the call has succeeded.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.text == "OK" || self.text.starts_with("OK ")
    }
}

fn flag(name: &str, on: bool) -> String {
    if on { name.to_owned() } else { String::new() }
}

impl Names {
    /// A pid of `own`'s, or of whom else.
    #[must_use]
    pub fn pid(&self, pid: u32, own: &str) -> String {
        match self.pids.get(&pid) {
            Some(name) if name == own => "pid".to_owned(),
            Some(name) => format!("pid({name})"),
            None if pid == 0 => "pid=0".to_owned(),
            None => "pid(unknown)".to_owned(),
        }
    }

    /// An error.
    #[must_use]
    pub fn error(&self, cause: &ttrpc::Error) -> Answer {
        let ttrpc::Error::RpcStatus(status) = cause else {
            return Answer { text: NO_ANSWER.to_owned(), words: cause.to_string() };
        };
        let words = self.without(&status.message);
        let found: Vec<&str> = PHRASES.into_iter().filter(|phrase| words.contains(phrase)).collect();
        let phrases = if found.is_empty() { String::new() } else { format!(" ({})", found.join(", ")) };
        Answer { text: format!("{:?}{phrases}", status.code()), words }
    }

    /// A text without the names that are another run's in another run.
    #[must_use]
    pub fn without(&self, text: &str) -> String {
        text.trim_end().replace(&self.bundle, "<bundle>").replace(&self.id, "<id>")
    }

    fn is(&self, name: &str, told: &str, wanted: &str) -> String {
        if told == wanted { String::new() } else { format!("{name}={:?}", told.replace(&self.id, "<id>")) }
    }

    /// The answer to State.
    #[must_use]
    pub fn state(&self, state: &StateResponse, own: &str, exec_id: &str) -> Answer {
        let status = state.status.enum_value().map_or_else(|number| number.to_string(), |status| format!("{status:?}"));
        let wanted = if exec_id.is_empty() { &self.id } else { exec_id };
        Answer::ok(&[
            status,
            self.pid(state.pid, own),
            format!("status={}", state.exit_status),
            time(&state.exited_at),
            flag("terminal", state.terminal),
            flag("stdin", !state.stdin.is_empty()),
            flag("stdout", !state.stdout.is_empty()),
            flag("stderr", !state.stderr.is_empty()),
            self.is("id", &state.id, wanted),
            self.is("exec_id", &state.exec_id, exec_id),
            self.is("bundle", &state.bundle, &self.bundle),
        ])
    }

    /// The answer to Pids: whose they are, and with which exec ids.
    #[must_use]
    pub fn processes(&self, pids: &PidsResponse) -> Answer {
        let mut named: Vec<String> = pids
            .processes
            .iter()
            .map(|process| {
                let name = self.pids.get(&process.pid).map_or("unknown", String::as_str);
                match &process.info.value[..] {
                    [] => name.to_owned(),
                    // `ProcessDetails`: its one field is the exec's id, after a tag and a length.
                    details => format!("{name}:{}", String::from_utf8_lossy(details.get(2..).unwrap_or_default())),
                }
            })
            .collect();
        named.sort();
        Answer::ok(&named)
    }

    /// The answer to Stats: of which type, and what is in it. Nothing of a container that does not run can be foretold.
    #[must_use]
    pub fn stats(&self, stats: &StatsResponse, runs: bool) -> Answer {
        let Some(any) = stats.stats.as_ref() else { return Answer::ok(&[]) };
        let Ok(metrics) = Metrics::parse_from_bytes(&any.value) else {
            return Answer::ok(&[any.type_url.clone(), "garbled".to_owned()]);
        };
        let more = |name: &str, value: u64| {
            if runs { format!("{name}{}", if value > 0 { ">0" } else { "=0" }) } else { String::new() }
        };
        Answer::ok(&[
            any.type_url.clone(),
            flag("pids", metrics.pids.is_some()),
            flag("cpu", metrics.cpu.is_some()),
            flag("memory", metrics.memory.is_some()),
            flag("memory_events", metrics.memory_events.is_some()),
            flag("io", metrics.io.is_some()),
            more("pids.current", metrics.pids.current),
            more("cpu.usage_usec", metrics.cpu.usage_usec),
            more("memory.usage", metrics.memory.usage),
            more("memory.usage_limit", metrics.memory.usage_limit),
        ])
    }

    /// Which process an event is of, its topic's last word, and all that it says.
    #[must_use]
    pub fn event(&self, envelope: &Envelope) -> Event {
        let topic = envelope.topic().trim_start_matches("/tasks/").to_owned();
        let any = envelope.event.clone().unwrap_or_default();
        let value = &any.value[..];
        let (process, container, fields) = match topic.as_str() {
            "create" => {
                let event = TaskCreate::parse_from_bytes(value).unwrap_or_default();
                let fields = [
                    self.pid(event.pid, "init"),
                    self.is("bundle", &event.bundle, &self.bundle),
                    io(event.io.as_ref()),
                ];
                (String::new(), event.container_id, fields.to_vec())
            }
            "start" => {
                let event = TaskStart::parse_from_bytes(value).unwrap_or_default();
                (String::new(), event.container_id, vec![self.pid(event.pid, "init")])
            }
            "exit" => {
                let event = TaskExit::parse_from_bytes(value).unwrap_or_default();
                let id = if event.id == event.container_id { String::new() } else { event.id };
                let own = if id.is_empty() { "init" } else { &id };
                let fields =
                    vec![self.pid(event.pid, own), format!("status={}", event.exit_status), time(&event.exited_at)];
                (id, event.container_id, fields)
            }
            "delete" => {
                let event = TaskDelete::parse_from_bytes(value).unwrap_or_default();
                let own = if event.id.is_empty() { "init" } else { &event.id };
                let fields =
                    vec![self.pid(event.pid, own), format!("status={}", event.exit_status), time(&event.exited_at)];
                (event.id, event.container_id, fields)
            }
            "exec-added" => {
                let event = TaskExecAdded::parse_from_bytes(value).unwrap_or_default();
                (event.exec_id, event.container_id, Vec::new())
            }
            "exec-started" => {
                let event = TaskExecStarted::parse_from_bytes(value).unwrap_or_default();
                let pid = self.pid(event.pid, &event.exec_id);
                (event.exec_id, event.container_id, vec![pid])
            }
            "paused" => {
                (String::new(), TaskPaused::parse_from_bytes(value).unwrap_or_default().container_id, Vec::new())
            }
            "resumed" => {
                (String::new(), TaskResumed::parse_from_bytes(value).unwrap_or_default().container_id, Vec::new())
            }
            "oom" => (String::new(), TaskOOM::parse_from_bytes(value).unwrap_or_default().container_id, Vec::new()),
            "checkpointed" => {
                (String::new(), TaskCheckpointed::parse_from_bytes(value).unwrap_or_default().container_id, Vec::new())
            }
            _ => (String::new(), String::new(), Vec::new()),
        };
        let process = if process.is_empty() { "init".to_owned() } else { process };
        let type_name = any.type_url.strip_prefix("containerd.events.").map_or(&*any.type_url, |_| "");
        let namespace = self.is("namespace", envelope.namespace(), super::shim::NAMESPACE);
        let mut text = topic.clone();
        let container = self.is("container", &container, &self.id);
        for field in fields.into_iter().chain([type_name.to_owned(), namespace, container]) {
            if !field.is_empty() {
                text.push(' ');
                text.push_str(&field);
            }
        }
        Event { process, topic, text }
    }
}

/// An event in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `init`, or an exec's id.
    pub process: String,
    /// The topic's last word.
    pub topic: String,
    /// The topic and all that it says.
    pub text: String,
}

fn io(io: Option<&TaskIO>) -> String {
    let Some(io) = io else { return "no io".to_owned() };
    let flags = [
        flag("terminal", io.terminal),
        flag("stdin", !io.stdin.is_empty()),
        flag("stdout", !io.stdout.is_empty()),
        flag("stderr", !io.stderr.is_empty()),
    ];
    flags.into_iter().filter(|flag| !flag.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Whether a time was told. Go's zero time is none: containerd reads one that is not there as that.
#[must_use]
pub fn time(at: &MessageField<Timestamp>) -> String {
    match at.as_ref().map(|at| at.seconds) {
        None | Some(YEAR_ONE) => String::new(),
        Some(0) => "at=1970".to_owned(),
        Some(_) => "at".to_owned(),
    }
}
