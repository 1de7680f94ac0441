//! Words of `linux.cgroupsPath`.

use std::path::PathBuf;

/// The directory of a slice below the tree's root: `a-b.slice` is `a.slice/a-b.slice` (systemd.slice(5)).
#[must_use]
pub fn slice_path(slice: &str) -> PathBuf {
    let Some(name) = slice.strip_suffix(".slice").filter(|name| *name != "-") else { return PathBuf::new() };
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    ends.map(|end| format!("{}.slice", &name[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_is_in_the_slices_that_its_name_begins_with() {
        assert_eq!(slice_path("a-b-c.slice"), PathBuf::from("a.slice/a-b.slice/a-b-c.slice"));
        assert_eq!(slice_path("system.slice"), PathBuf::from("system.slice"));
        assert_eq!(slice_path("-.slice"), PathBuf::new());
        assert_eq!(slice_path("no"), PathBuf::new());
    }
}
