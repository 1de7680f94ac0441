//! Files of the host that a case takes away or replaces.

use std::fs;
use std::path::PathBuf;

/// A file that is not where it belongs, until this is dropped.
pub struct Aside {
    /// Where it belongs.
    pub path: PathBuf,
    aside: PathBuf,
}

impl Aside {
    /// Without the file.
    ///
    /// # Panics
    /// It is not there.
    #[must_use]
    pub fn move_away(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let aside = path.with_extension("aside");
        fs::rename(&path, &aside).unwrap();
        Self { path, aside }
    }

    /// Puts another file in its place.
    ///
    /// # Panics
    /// As [`Aside::move_away`].
    #[must_use]
    pub fn replace(path: impl Into<PathBuf>, text: &[u8]) -> Self {
        let aside = Self::move_away(path);
        fs::write(&aside.path, text).unwrap();
        fs::set_permissions(&aside.path, fs::metadata(&aside.aside).unwrap().permissions()).unwrap();
        aside
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Renaming replaces what was put there.
        fs::rename(&self.aside, &self.path).unwrap();
    }
}
