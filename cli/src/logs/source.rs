//! A log that is still written, and may be continued in a new file of the same name.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Bytes that are read of one file at once: a log is bounded by its configuration, a file in its place is not.
const MOST: u64 = 16 << 20;

/// A log.
pub struct Source {
    title: &'static str,
    path: PathBuf,
    /// Where the part before is.
    old: Option<PathBuf>,
    file: Option<File>,
    /// A line whose end has not come yet.
    rest: Vec<u8>,
}

impl Source {
    /// A log at `path`, whose part before is at `old`.
    pub fn new(title: &'static str, path: PathBuf, old: Option<PathBuf>) -> Self {
        Self { title, path, old, file: None, rest: Vec::new() }
    }

    /// What it is.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// What is new: whole lines, and with `all` also the beginning of one.
    pub fn read(&mut self, all: bool) -> io::Result<String> {
        let mut bytes = std::mem::take(&mut self.rest);
        match &mut self.file {
            Some(file) => more(file, &mut bytes)?,
            None => {
                if let Some(mut old) = self.old.take().map(open).transpose()?.flatten() {
                    more(&mut old, &mut bytes)?;
                }
            }
        }
        // Turned over, or there for the first time.
        if let Some(mut current) = open(self.path.clone())?
            && !self.file.as_ref().is_some_and(|file| is_same(file, &current))
        {
            more(&mut current, &mut bytes)?;
            self.file = Some(current);
        }
        if !all {
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            self.rest = bytes.split_off(whole);
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn open(path: PathBuf) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause),
    }
}

fn more(file: &mut File, bytes: &mut Vec<u8>) -> io::Result<()> {
    file.take(MOST).read_to_end(bytes).map(drop)
}

fn is_same(one: &File, other: &File) -> bool {
    let number = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    number(one).is_some_and(|one| Some(one) == number(other))
}
