//! The phases of a start, from husk's time stamps.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use husk_shim::config::PATH;
use husk_shim::phases::{Line, Stamp};
use tempfile::TempDir;
use toml::{Table, Value};

use super::BenchError;
use super::report::{Segment, Who};

/// Who was at work before each stamp, in the order in which they come.
const PARTS: [(Stamp, Who); 15] = [
    (Stamp::Start, Who::Containerd),
    (Stamp::Serving, Who::Shim),
    (Stamp::CreateReceived, Who::Containerd),
    (Stamp::MachineAsked, Who::Shim),
    (Stamp::GuestEntered, Who::Vmm),
    (Stamp::Init, Who::Kernel),
    (Stamp::AgentReady, Who::Agent),
    (Stamp::SandboxMade, Who::Agent),
    (Stamp::ContainerMade, Who::Container),
    (Stamp::StartReceived, Who::Containerd),
    (Stamp::ProgramStarted, Who::Container),
    (Stamp::ExitTold, Who::Container),
    (Stamp::DeleteReceived, Who::Containerd),
    (Stamp::MachineStopped, Who::Vmm),
    (Stamp::Deleted, Who::Shim),
];

/// The configuration that makes husk write its stamps: this host's with one key more.
#[derive(Debug)]
pub struct Stamps {
    directory: TempDir,
}

impl Stamps {
    /// Makes the configuration.
    ///
    /// # Errors
    /// The host's cannot be read, or it is not TOML.
    pub fn new() -> Result<Self, BenchError> {
        let text = match fs::read_to_string(PATH) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.map_err(|cause| BenchError::File(PATH.into(), cause))?,
        };
        let directory = tempfile::Builder::new().prefix("husk-bench-").tempdir();
        let stamps = Self { directory: directory.map_err(|cause| BenchError::File(std::env::temp_dir(), cause))? };
        let config = with_phases(&text, &stamps.file())
            .map_err(|why| BenchError::Failed { what: format!("read {PATH}"), why })?;
        fs::write(stamps.config(), config).map_err(|cause| BenchError::File(stamps.config(), cause))?;
        Ok(stamps)
    }

    /// What `ctr run --runtime-config-path` gets.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("config.toml")
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("phases")
    }

    /// The phases of the run `id`, which lasted from `begin` to `end`; none if it has no stamps.
    #[must_use]
    pub fn of(&self, id: &str, begin: u64, end: u64) -> Option<Vec<Segment>> {
        let text = fs::read_to_string(self.file()).ok()?;
        let mut lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        let line = lines.rfind(|line| line.id == id)?;
        Some(segments(&line, begin, end))
    }
}

/// Whether the runtime has time stamps: husk, by its type or its program's path.
#[must_use]
pub fn has_stamps(runtime: &str) -> bool {
    let name = Path::new(runtime).file_name().map_or_else(Default::default, |name| name.to_string_lossy());
    name.contains(".husk.") || name == "containerd-shim-husk-v2"
}

fn with_phases(text: &str, file: &Path) -> Result<String, String> {
    let mut table: Table = text.parse().map_err(|cause: toml::de::Error| cause.to_string())?;
    let log = table.entry("log").or_insert_with(|| Value::Table(Table::new()));
    let log = log.as_table_mut().ok_or("log is not a section")?;
    log.insert("phases_file".to_owned(), Value::String(file.display().to_string()));
    Ok(table.to_string())
}

/// From `begin` to `end`, without a gap: a stamp that is missing leaves its part to the next one. Stamps out of their
/// order, which are the guest's word in part, make parts of no length.
fn segments(line: &Line, begin: u64, end: u64) -> Vec<Segment> {
    let stamps = PARTS.into_iter().filter_map(|(stamp, who)| Some((*line.at.get(&stamp)?, who)));
    let mut last = begin;
    let mut segments = Vec::new();
    for (at, who) in stamps.chain([(end, Who::Containerd)]) {
        let at = at.clamp(last, end.max(last));
        segments.push(Segment { who, time: (at - last) as f64 / 1e6 });
        last = at;
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_make_the_whole() {
        let at = [(Stamp::Start, 2_000_000), (Stamp::Serving, 3_000_000), (Stamp::GuestEntered, 9_000_000)];
        let line = Line { id: "a".into(), at: at.into_iter().collect() };
        let parts = segments(&line, 1_000_000, 20_000_000);
        let wanted = [(Who::Containerd, 1.0), (Who::Shim, 1.0), (Who::Vmm, 6.0), (Who::Containerd, 11.0)];
        assert_eq!(parts, wanted.map(|(who, time)| Segment { who, time }));
    }

    #[test]
    fn stamps_out_of_order_do_not_make_time() {
        let at = [(Stamp::Start, 2_000_000), (Stamp::Init, u64::MAX), (Stamp::AgentReady, 5_000_000)];
        let line = Line { id: "a".into(), at: at.into_iter().collect() };
        let parts = segments(&line, 3_000_000, 4_000_000);
        assert_eq!(parts.iter().map(|part| part.time).collect::<Vec<_>>(), [0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn every_stamp_has_its_part() {
        for (before, after) in PARTS.iter().zip(&PARTS[1..]) {
            assert!(before.0 < after.0);
        }
        assert_eq!((PARTS[0].0, PARTS[14].0), (Stamp::Start, Stamp::Deleted));
    }

    #[test]
    fn the_hosts_configuration_stays() {
        let text = "[vm]\nmemory_mib = 256\n[log]\nlevel = \"warn\"\n";
        let made = with_phases(text, Path::new("/tmp/x/phases")).unwrap();
        let config = husk_shim::config::Config::parse(&made, "made").unwrap();
        assert_eq!((config.vm.memory_mib, &*config.log.level), (256, "warn"));
        assert_eq!(config.log.phases_file, Path::new("/tmp/x/phases"));
        assert!(with_phases("[log\n", Path::new("/x")).is_err());
        assert!(with_phases("log = 3\n", Path::new("/x")).unwrap_err().contains("log"));
    }

    #[test]
    fn husk_is_known_by_type_and_path() {
        assert!(has_stamps("io.containerd.husk.v2") && has_stamps("/usr/bin/containerd-shim-husk-v2"));
        assert!(!has_stamps("io.containerd.runc.v2") && !has_stamps("io.containerd.kata.v2"));
    }
}
