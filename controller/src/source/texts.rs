//! The texts of the files that findings are about: each is read once, however many findings it has, and its lines are found at
//! once. A file that cannot be read (any more) has no lines to show.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use switchyard_crds::Place;

use crate::source::manifest::MAX_FILE_BYTES;

/// The texts, as far as they have been asked for.
#[derive(Debug, Default)]
pub struct Texts {
    texts: BTreeMap<PathBuf, Text>,
}

/// A file's text, and where each of its lines begins.
#[derive(Debug)]
struct Text {
    text: String,
    lines: Vec<usize>,
}

impl Texts {
    /// Keeps a text that cannot be read once more, such as that of the standard input.
    pub fn keep(&mut self, file: &Path, text: String) {
        self.texts.insert(file.to_owned(), Text::new(text));
    }

    /// The text of a file.
    pub fn of(&mut self, file: &Path) -> &str {
        &self.load(file).text
    }

    /// The line that a place is in.
    pub fn line(&mut self, place: &Place) -> Option<&str> {
        let number = place.line.checked_sub(1)?;
        let Text { text, lines } = self.load(&place.file);
        text[*lines.get(number)?..].lines().next()
    }

    fn load(&mut self, file: &Path) -> &Text {
        self.texts.entry(file.to_owned()).or_insert_with(|| Text::new(read(file).unwrap_or_default()))
    }
}

impl Text {
    fn new(text: String) -> Self {
        let after_breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(i, _)| i + 1);
        let lines = std::iter::once(0).chain(after_breaks).collect();
        Self { text, lines }
    }
}

/// What is no UTF-8 is shown as a mark: such a file has findings too.
fn read(file: &Path) -> Option<String> {
    let metadata = std::fs::metadata(file).ok()?;
    let fits = metadata.is_file() && metadata.len() <= MAX_FILE_BYTES;
    fits.then(|| std::fs::read(file).ok()).flatten().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}
