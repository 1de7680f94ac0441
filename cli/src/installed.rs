//! The installed versions of husk: a directory each below `/usr/lib/husk`.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::host::Host;

/// What a version is made of.
const FILES: [(&str, Kind); 4] =
    [("husk-vmm", Kind::Program), ("husk-stub", Kind::Program), ("vmlinux", Kind::Kernel), ("initrd", Kind::Initrd)];

/// What a file has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An ELF file that may be executed.
    Program,
    /// An ELF file.
    Kernel,
    /// A cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst).
    Initrd,
}

/// A version.
#[derive(Debug, Serialize)]
pub struct Installed {
    /// Its number, the name of its directory.
    pub version: String,
    /// Its directory.
    pub directory: PathBuf,
    /// What it is made of.
    pub files: Vec<InstalledFile>,
}

/// One of a version's files.
#[derive(Debug, Serialize)]
pub struct InstalledFile {
    /// Its name.
    pub name: &'static str,
    /// Its size in bytes; none if it is not there.
    pub size: Option<u64>,
    /// What is wrong with it.
    pub problem: Option<String>,
}

impl Installed {
    /// Looks at one version.
    #[must_use]
    pub fn of(host: &Host, version: &str) -> Self {
        let directory = host.lib.join(version);
        let look = |(name, kind)| {
            let path = directory.join(name);
            let size = fs::metadata(&path).ok().map(|metadata| metadata.len());
            InstalledFile { name, size, problem: problem(&path, kind).err() }
        };
        Self { version: version.to_owned(), files: FILES.map(look).into(), directory }
    }

    /// All that are installed, by name.
    ///
    /// # Errors
    /// The directory cannot be read; that there is none means that none is installed.
    pub fn all(host: &Host) -> io::Result<Vec<Self>> {
        let entries = match fs::read_dir(&host.lib) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let directories = entries.flatten().filter(|entry| entry.path().is_dir());
        let mut names: Vec<String> =
            directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names.iter().map(|name| Self::of(host, name)).collect())
    }

    /// What Linux the guest has, as the kernel's own text says it.
    ///
    /// # Errors
    /// There is no such text in the file, or no file.
    pub fn guest_kernel(&self) -> io::Result<String> {
        const BANNER: &[u8] = b"Linux version ";
        let kernel = fs::read(self.directory.join("vmlinux"))?;
        // The format of another text begins with the same words: the real one has a number there.
        let is_banner = |at: &usize| {
            let rest = kernel.get(*at..).unwrap_or_default();
            rest.starts_with(BANNER) && rest.get(BANNER.len()).is_some_and(u8::is_ascii_digit)
        };
        let at = (0..kernel.len()).find(is_banner).ok_or_else(|| io::Error::other("it does not say its version"))?;
        let rest = kernel.get(at + BANNER.len()..).unwrap_or_default();
        let word: Vec<u8> = rest.iter().copied().take(64).take_while(u8::is_ascii_graphic).collect();
        Ok(String::from_utf8_lossy(&word).into_owned())
    }
}

/// What is wrong with a file.
fn problem(path: &Path, kind: Kind) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => "is not there".to_owned(),
        _ => format!("cannot be looked at: {cause}"),
    })?;
    if !metadata.is_file() {
        return Err("is not a file".to_owned());
    }
    if kind == Kind::Program && metadata.permissions().mode() & 0o111 == 0 {
        return Err("may not be executed".to_owned());
    }
    let mut file = File::open(path).map_err(|cause| format!("cannot be read: {cause}"))?;
    let whole = match kind {
        Kind::Program | Kind::Kernel => is_whole_elf(&mut file, metadata.len()),
        Kind::Initrd => is_whole_archive(&mut file, metadata.len()),
    };
    match whole.map_err(|cause| format!("cannot be read: {cause}"))? {
        true => Ok(()),
        false if metadata.len() == 0 => Err("is empty".to_owned()),
        false => Err("is damaged or cut short".to_owned()),
    }
}

/// Whether all that the ELF header names is inside the file (ELF-64, "ELF Header" and "Program Header").
fn is_whole_elf(file: &mut File, size: u64) -> io::Result<bool> {
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const X86_64: u64 = 62;
    let mut header = Vec::new();
    file.take(HEADER as u64).read_to_end(&mut header)?;
    let number = |bytes: &[u8], at: usize, len: usize| {
        let bytes = bytes.get(at..at + len)?;
        Some(bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let field = |at, len| number(&header, at, len).unwrap_or(0);
    // Magic, 64 bits, little endian; the machine.
    if !header.starts_with(b"\x7fELF\x02\x01") || field(18, 2) != X86_64 {
        return Ok(false);
    }
    let inside = |start: u64, len: u64| start.checked_add(len).is_some_and(|end| end <= size);
    let (programs, sections) = (field(32, 8), field(40, 8));
    let (program_count, section_count) = (field(56, 2), field(60, 2));
    let program_bytes = program_count * PROGRAM_HEADER as u64;
    if program_count == 0 || !inside(programs, program_bytes) || !inside(sections, section_count * field(58, 2)) {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(programs))?;
    let mut table = Vec::new();
    file.take(program_bytes).read_to_end(&mut table)?;
    Ok(table.chunks(PROGRAM_HEADER).all(|entry| match (number(entry, 8, 8), number(entry, 32, 8)) {
        (Some(offset), Some(len)) => inside(offset, len),
        _ => false,
    }))
}

/// Whether the file begins as an archive and ends as one.
fn is_whole_archive(file: &mut File, size: u64) -> io::Result<bool> {
    // The last entry's name, then zeros up to a block.
    const END: &[u8] = b"TRAILER!!!";
    const LAST: u64 = 1024;
    let mut start = Vec::new();
    file.take(6).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(size.saturating_sub(LAST)))?;
    let mut last = Vec::new();
    file.take(LAST).read_to_end(&mut last)?;
    Ok(start == b"070701" && last.windows(END.len()).any(|window| window == END))
}

/// A version with small files that pass.
#[cfg(test)]
pub fn make(host: &Host, version: &str) {
    let directory = host.lib.join(version);
    fs::create_dir_all(&directory).unwrap();
    // A header, one program header, and a byte that it names.
    let mut elf = vec![0; 121];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (elf[18], elf[32], elf[56]) = (62, 64, 1);
    (elf[64 + 8], elf[64 + 32]) = (120, 1);
    elf.extend(b"Linux version %s\0Linux version 6.12.9-husk (a compiler)");
    for name in ["husk-vmm", "husk-stub", "vmlinux"] {
        fs::write(directory.join(name), &elf).unwrap();
        let mode = if name == "vmlinux" { 0o644 } else { 0o755 };
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(directory.join("initrd"), [&b"070701"[..], &[0; 300], b"TRAILER!!!", &[0; 500]].concat()).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem_of(host: &Host, name: &str) -> Option<String> {
        Installed::of(host, "1.0.0").files.into_iter().find(|file| file.name == name).unwrap().problem
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        assert!(Installed::all(&host).unwrap().is_empty());
        make(&host, "1.0.0");
        let all = Installed::all(&host).unwrap();
        assert_eq!((all.len(), all[0].version.as_str()), (1, "1.0.0"));
        assert!(all[0].files.iter().all(|file| file.problem.is_none()), "{all:?}");
        assert_eq!(all[0].guest_kernel().unwrap(), "6.12.9-husk");

        let at = |name: &str| host.lib.join("1.0.0").join(name);
        File::options().write(true).open(at("husk-vmm")).unwrap().set_len(120).unwrap();
        assert_eq!(problem_of(&host, "husk-vmm").unwrap(), "is damaged or cut short");
        fs::write(at("husk-vmm"), "").unwrap();
        assert_eq!(problem_of(&host, "husk-vmm").unwrap(), "is empty");
        fs::set_permissions(at("husk-stub"), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(problem_of(&host, "husk-stub").unwrap(), "may not be executed");
        fs::remove_file(at("vmlinux")).unwrap();
        assert_eq!(problem_of(&host, "vmlinux").unwrap(), "is not there");
        File::options().write(true).open(at("initrd")).unwrap().set_len(200).unwrap();
        assert_eq!(problem_of(&host, "initrd").unwrap(), "is damaged or cut short");
        fs::remove_file(at("initrd")).unwrap();
        fs::create_dir(at("initrd")).unwrap();
        assert_eq!(problem_of(&host, "initrd").unwrap(), "is not a file");
    }

    #[test]
    fn headers_that_lie_are_found() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::below(root.path());
        make(&host, "1.0.0");
        let path = host.lib.join("1.0.0/vmlinux");
        let good = fs::read(&path).unwrap();
        for (at, value) in [(18, 3), (56, 0), (64 + 8 + 7, 0xff), (32 + 7, 0xff), (40 + 7, 0xff)] {
            let mut bad = good.clone();
            bad[at] = value;
            fs::write(&path, bad).unwrap();
            assert!(problem_of(&host, "vmlinux").is_some(), "byte {at}");
        }
    }
}
