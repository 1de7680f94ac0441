//! containerd's configuration: whether it can be read, and whether husk is a runtime in it.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use husk_shim::host::file::read_small_text;
use toml::{Table, Value};

use super::Point;
use super::containerd::Containerd;
use crate::host::find_program;

/// What a runtime of ours is called.
pub const RUNTIME_TYPE: &str = "io.containerd.husk.v2";
/// The section of CRI's plugin that each version of the file has.
const SECTIONS: [(i64, &str); 3] = [(1, "cri"), (2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")];
/// Files that are read in all: imports may name each other.
const MOST_FILES: usize = 64;

/// Why the configuration is none.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A file cannot be read.
    #[error("cannot read {}: {}", .0.display(), .1)]
    Read(PathBuf, std::io::Error),
    /// A file is no TOML.
    #[error("{}: {}", .0.display(), .1)]
    Parse(PathBuf, toml::de::Error),
}

/// Bytes of one file at most.
const MOST: u64 = 4 << 20;

/// A file and what it imports.
pub struct Configuration {
    path: PathBuf,
    files: Vec<(PathBuf, Table)>,
}

/// A runtime in it.
struct Runtime<'a> {
    name: &'a str,
    file: &'a Path,
    version: i64,
    section: &'a str,
    kind: &'a str,
    path: &'a str,
}

impl Configuration {
    /// Reads the file, and the files that it imports. None there: containerd goes by its defaults.
    pub fn read(path: &Path) -> Result<Self, ConfigurationError> {
        let mut files = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next = vec![path.to_owned()];
        while let Some(file) = next.pop() {
            if files.len() == MOST_FILES || !seen.insert(file.clone()) {
                continue;
            }
            let text = match read_small_text(&file, MOST) {
                Ok(text) => text,
                Err(cause) if cause.kind() == ErrorKind::NotFound => continue,
                Err(cause) => return Err(ConfigurationError::Read(file, cause)),
            };
            let table: Table = toml::from_str(&text).map_err(|cause| ConfigurationError::Parse(file.clone(), cause))?;
            let imports = table.get("imports").and_then(Value::as_array).into_iter().flatten();
            let directory = file.parent().unwrap_or(Path::new("/"));
            next.extend(imports.filter_map(Value::as_str).flat_map(|import| expand(&directory.join(import))));
            files.push((file, table));
        }
        Ok(Self { path: path.to_owned(), files })
    }

    /// Where containerd listens, if the file says it.
    pub fn address(&self) -> Option<String> {
        let grpc = |table: &Table| Some(table.get("grpc")?.get("address")?.as_str()?.to_owned());
        // What is imported is read later, and wins.
        self.files.iter().rev().find_map(|(_, table)| grpc(table)).filter(|address| !address.is_empty())
    }

    /// Where containerd keeps what runs, if the file says it.
    pub fn state(&self) -> Option<String> {
        let state = |table: &Table| Some(table.get("state")?.as_str()?.to_owned());
        self.files.iter().rev().find_map(|(_, table)| state(table)).filter(|state| !state.is_empty())
    }

    /// The point: that it can be read.
    pub fn point(&self) -> Point {
        let name = "containerd.config";
        let Some((_, first)) = self.files.first() else {
            return Point::ok(name, format!("no {}: containerd goes by its defaults", self.path.display()));
        };
        let others = match self.files.len() - 1 {
            0 => String::new(),
            others => format!(", with {others} imported"),
        };
        Point::ok(name, format!("{} (version {}{others})", self.path.display(), version_of(first)))
    }

    /// The version that the first file has, and with it the place for runtimes.
    fn version(&self) -> i64 {
        self.files.first().map_or(2, |(_, table)| version_of(table))
    }

    fn runtimes(&self) -> Vec<Runtime<'_>> {
        let mut all = Vec::new();
        for (file, table) in &self.files {
            for (_, section) in SECTIONS {
                let runtimes = table
                    .get("plugins")
                    .and_then(|plugins| plugins.get(section)?.get("containerd")?.get("runtimes")?.as_table());
                for (name, runtime) in runtimes.into_iter().flatten() {
                    let text = |key| runtime.get(key).and_then(Value::as_str).unwrap_or_default();
                    let (kind, path, version) = (text("runtime_type"), text("runtime_path"), version_of(table));
                    all.push(Runtime { name, file, version, section, kind, path });
                }
            }
        }
        all
    }

    fn disables_cri(&self) -> bool {
        let disabled = self.files.iter().filter_map(|(_, table)| table.get("disabled_plugins")?.as_array()).flatten();
        let names: Vec<&str> = disabled.filter_map(Value::as_str).collect();
        SECTIONS.iter().any(|(_, section)| names.contains(section))
    }
}

fn version_of(table: &Table) -> i64 {
    table.get("version").and_then(Value::as_integer).unwrap_or(1)
}

fn section_of(version: i64) -> &'static str {
    SECTIONS.iter().find(|(number, _)| *number == version).map_or(SECTIONS[2].1, |(_, section)| section)
}

/// The files that an import names: itself, or what has its beginning and its end, where one `*` is in its last part.
fn expand(import: &Path) -> Vec<PathBuf> {
    let name = import.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((begin, end)) = name.split_once('*') else { return vec![import.to_owned()] };
    let entries = import.parent().and_then(|directory| fs::read_dir(directory).ok());
    let fits = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end))
    };
    let mut paths: Vec<PathBuf> =
        entries.into_iter().flatten().flatten().map(|entry| entry.path()).filter(fits).collect();
    paths.sort();
    paths
}

impl Runtime<'_> {
    fn is_ours(&self) -> bool {
        [self.name, self.kind, self.path].iter().any(|text| text.contains("husk"))
    }

    /// The program that containerd runs for it: the path that is named, or a name made of the type's last two parts.
    fn program(&self, containerd: &Containerd) -> Result<PathBuf, String> {
        let named = if self.path.is_empty() { self.kind } else { self.path };
        if named.starts_with('/') {
            let path = PathBuf::from(named);
            return if path.is_file() { Ok(path) } else { Err(format!("its program {named} is not there")) };
        }
        let mut parts = self.kind.rsplit('.');
        let (Some(version), Some(name)) = (parts.next(), parts.next()) else {
            return Err(format!("its runtime_type {:?} is not of the form io.containerd.husk.v2", self.kind));
        };
        let program = format!("containerd-shim-{name}-{version}");
        find_program(&containerd.path, &program).ok_or_else(|| {
            format!("its runtime_type {:?} means the program {program}, which is not in containerd's PATH", self.kind)
        })
    }
}

/// The point: that husk is a runtime of CRI's. `ctr` and `nerdctl` need none of that.
pub fn point(configuration: &Configuration, containerd: &Containerd) -> Point {
    let name = "containerd.runtime";
    let section = section_of(configuration.version());
    let lines = format!("[plugins.\"{section}\".containerd.runtimes.husk] with runtime_type = \"{RUNTIME_TYPE}\"");
    let runtimes = configuration.runtimes();
    let ours: Vec<&Runtime<'_>> = runtimes.iter().filter(|runtime| runtime.is_ours()).collect();
    if ours.is_empty() {
        let what = format!(
            "husk is not registered in {}, which only Kubernetes needs: ctr run --runtime {RUNTIME_TYPE} works without",
            configuration.path.display()
        );
        return Point::note(name, what).with_remedy(format!(
            "for Kubernetes: add {lines} to the file (version = {}), then restart containerd",
            configuration.version()
        ));
    }
    for runtime in &ours {
        let place = format!("runtime {:?} in {}", runtime.name, runtime.file.display());
        if let Err(why) = runtime.program(containerd) {
            return Point::failed(name, format!("{place}: {why}"), format!("correct it: {lines}"));
        }
        if runtime.section != section_of(runtime.version) {
            let what = format!(
                "{place} is in the section {:?}, and a file of version {} has its runtimes in {:?}: containerd does not see it",
                runtime.section,
                runtime.version,
                section_of(runtime.version)
            );
            return Point::warning(name, what, format!("for Kubernetes: move it to {lines}"));
        }
    }
    if configuration.disables_cri() {
        let what = "registered, but disabled_plugins names CRI's plugin: Kubernetes cannot use this containerd at all";
        return Point::warning(name, what, "for Kubernetes: take it out of disabled_plugins, then restart containerd");
    }
    let names: Vec<String> = ours.iter().map(|runtime| format!("{} = {}", runtime.name, runtime.kind)).collect();
    Point::ok(name, format!("registered for Kubernetes: {}", names.join(", ")))
}

#[cfg(test)]
#[path = "registration_tests.rs"]
mod tests;
