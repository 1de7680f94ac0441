//! A log that is still written, and may be continued in a new file of the same name.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Mode, OFlags, openat};

/// Bytes that are read of one file at once: a log is bounded by its configuration, a file in its place is not.
const MOST: u64 = 16 << 20;

/// A log in a directory.
pub struct Source {
    title: &'static str,
    name: &'static str,
    /// Where the part before is.
    old: Option<&'static str>,
    file: Option<File>,
    /// A line whose end has not come yet.
    rest: Vec<u8>,
}

impl Source {
    /// A log of this name, whose part before is called `old`.
    pub fn new(title: &'static str, name: &'static str, old: Option<&'static str>) -> Self {
        Self { title, name, old, file: None, rest: Vec::new() }
    }

    /// What it is.
    pub fn title(&self) -> &'static str {
        self.title
    }

    /// What is new: whole lines, and with `all` also the beginning of one. The directory may be gone.
    pub fn read(&mut self, directory: &OwnedFd, all: bool) -> io::Result<String> {
        let mut bytes = std::mem::take(&mut self.rest);
        match &mut self.file {
            Some(file) => more(file, &mut bytes)?,
            None => {
                if let Some(mut old) = self.old.take().map(|old| open(directory, old)).transpose()?.flatten() {
                    more(&mut old, &mut bytes)?;
                }
            }
        }
        // Turned over, or there for the first time.
        if let Some(mut current) = open(directory, self.name)?
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

fn open(directory: &OwnedFd, name: &str) -> io::Result<Option<File>> {
    // A fifo in a log's place would be waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match openat(directory, name, flags, Mode::empty()) {
        Ok(file) => Ok(Some(file.into())),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(cause) => Err(cause.into()),
    }
}

fn more(file: &mut File, bytes: &mut Vec<u8>) -> io::Result<()> {
    file.take(MOST).read_to_end(bytes).map(drop)
}

fn is_same(one: &File, other: &File) -> bool {
    let number = |file: &File| file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
    number(one).is_some_and(|one| Some(one) == number(other))
}
