//! Small files that somebody else may have put there.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// Reads a file of at most `most` bytes. A fifo, a device or a directory in its place is an error at once, and nobody
/// waits for a writer.
///
/// # Errors
/// It cannot be opened or read, it is no regular file, or it is too large.
pub fn read_small(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let fd = open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    let kind = FileType::from_raw_mode(fstat(&fd)?.st_mode);
    if kind == FileType::Directory {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if kind != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::from(fd).take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// [`read_small`], as text.
///
/// # Errors
/// As there, or it is not UTF-8.
pub fn read_small_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read_small(path, most)?)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no text (UTF-8)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "12345678").unwrap();
        assert_eq!(read_small_text(&file, 8).unwrap(), "12345678");
        assert!(read_small(&file, 7).unwrap_err().to_string().contains("more than 7 bytes"));
        std::fs::write(&file, b"\xff").unwrap();
        assert!(read_small_text(&file, 8).unwrap_err().to_string().contains("no text"));
        assert_eq!(read_small(directory.path(), 8).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert!(read_small(Path::new("/dev/zero"), 8).unwrap_err().to_string().contains("no regular file"));
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR).unwrap();
        assert!(read_small(&fifo, 8).unwrap_err().to_string().contains("no regular file"));
    }
}
