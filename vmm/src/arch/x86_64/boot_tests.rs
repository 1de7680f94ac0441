use std::io::Write;

use super::*;
use crate::memory;

/// A minimal ELF: one segment of `code` at 16 MiB, which is its entry.
fn elf(code: &[u8]) -> Vec<u8> {
    let entry: u64 = 0x100_0000;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    file.extend(2_u16.to_le_bytes()); // executable
    file.extend(62_u16.to_le_bytes()); // x86-64
    file.extend(1_u32.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(64_u64.to_le_bytes()); // program headers
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1_u32.to_le_bytes()); // PT_LOAD
    file.extend(5_u32.to_le_bytes());
    for word in [120, entry, entry, code.len() as u64, code.len() as u64, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

#[test]
fn everything_is_where_the_zero_page_says() {
    let memory = memory::cold(64).unwrap();
    let initrd = vec![7; 5000];
    let image = Image {
        kernel: &mut file(&elf(b"\xf4 a kernel")),
        initrd: &mut file(&initrd),
        cmdline: "quiet",
        vcpus: 2,
        lines: 3,
    };
    let entry = load(&memory, image).unwrap();
    let mut code = [0; 10];
    memory.read_slice(&mut code, GuestAddress(entry)).unwrap();
    assert_eq!(&code, b"\xf4 a kernel");

    let params: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
    let (start, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
    assert_eq!((start % 4096, size), (0, 5000));
    let mut read = vec![0; 5000];
    memory.read_slice(&mut read, GuestAddress(start.into())).unwrap();
    assert_eq!(read, initrd);

    let mut cmdline = [0xff; 6];
    memory.read_slice(&mut cmdline, GuestAddress(u64::from(params.hdr.cmd_line_ptr))).unwrap();
    assert_eq!(&cmdline, b"quiet\0");
    assert_eq!(params.e820_entries, 2);
    let [low, high, ..] = params.e820_table;
    assert_eq!({ low.size }, 0x9fc00);
    assert_eq!(({ high.addr }, { high.size }), (0x10_0000, (64 << 20) - 0x10_0000));

    let kind: u32 = memory.read_obj(GuestAddress(params.hdr.setup_data + 8)).unwrap();
    let mut seed = [0; 32];
    memory.read_slice(&mut seed, GuestAddress(params.hdr.setup_data + 16)).unwrap();
    assert_eq!(kind, 9);
    assert_ne!(seed, [0; 32]);
}

#[test]
fn large_memory_has_an_entry_above_the_hole() {
    let memory = memory::cold(4 * 1024).unwrap();
    let params = zero_page(&memory, "", (0, 0));
    let third = params.e820_table[2];
    assert_eq!(params.e820_entries, 3);
    assert_eq!(({ third.addr }, { third.size }), (HIGH_START, 1 << 30));
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory = memory::cold(18).unwrap();
    let initrd = tempfile::tempfile().unwrap();
    initrd.set_len(3 << 20).unwrap();
    let kernel = elf(b"k");
    let image = Image { kernel: &mut file(&kernel), initrd: &mut { initrd }, cmdline: "", vcpus: 1, lines: 0 };
    assert!(matches!(load(&memory, image), Err(BootError::NoRoom { .. })));
    let long = "x".repeat(layout::CMDLINE_SIZE);
    let image = Image { kernel: &mut file(&kernel), initrd: &mut file(b""), cmdline: &long, vcpus: 1, lines: 0 };
    assert!(matches!(load(&memory, image), Err(BootError::Cmdline(_))));
    let image = Image { kernel: &mut file(b"not an ELF"), initrd: &mut file(b""), cmdline: "", vcpus: 1, lines: 0 };
    assert!(matches!(load(&memory, image), Err(BootError::Kernel(_))));
}
