//! What is shown to a person: colour only where it is wanted, and no text that moves the cursor.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{IsTerminal, stdout};

/// Whether a person looks at the standard output.
#[must_use]
pub fn is_terminal() -> bool {
    stdout().is_terminal()
}

/// How many characters a line may have: what the terminal has, but no more than is easily read.
#[must_use]
pub fn width() -> usize {
    const LEAST: usize = 60;
    const MOST: usize = 110;
    let columns = rustix::termios::tcgetwinsize(stdout()).map_or(MOST, |size| usize::from(size.ws_col));
    // A terminal that does not know its size says 0.
    if columns == 0 { MOST } else { columns.clamp(LEAST, MOST) }
}

/// Whether colour is wanted: a terminal, and no NO_COLOR (no-color.org).
#[must_use]
pub fn wants_colour() -> bool {
    is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Text of somebody else's: control characters, and those that turn the direction of writing, are shown as `\x1b` or
/// `\u{202e}`. Tabs stay, and so do line ends where `lines` says so.
#[must_use]
pub fn escaped(text: &str, lines: bool) -> Cow<'_, str> {
    let harmless = |c: char| {
        let bidi = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        c == '\t' || (lines && c == '\n') || !(c.is_control() || bidi)
    };
    if text.chars().all(harmless) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        // Writing to a String does not fail.
        let _ = match c {
            c if harmless(c) => write!(safe, "{c}"),
            '\r' => write!(safe, "\\r"),
            '\n' => write!(safe, "\\n"),
            c if u32::from(c) < 0x80 => write!(safe, "\\x{:02x}", u32::from(c)),
            c => write!(safe, "{}", c.escape_unicode()),
        };
    }
    Cow::Owned(safe)
}

/// Words below each other. The columns are as wide as they must be; the last one is not filled up.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Breaks a text at spaces so that no line has more than `width` characters, if its words allow it.
#[must_use]
pub fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let Some(line) = lines.last_mut() else { break };
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_guest_does_not_move_the_cursor() {
        assert_eq!(escaped("plain\ttext\n", true), "plain\ttext\n");
        assert_eq!(escaped("\u{1b}[2Jgone\r\n", true), "\\x1b[2Jgone\\r\n");
        assert_eq!(escaped("a\nb\u{7f}", false), "a\\nb\\x7f");
        // C1: CSI in one character; and a switch of direction.
        assert_eq!(escaped("\u{9b}2J\u{202e}x", true), "\\u{9b}2J\\u{202e}x");
        assert_eq!(escaped("Grüße", true), "Grüße");
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        assert_eq!(table(&[row("ID", "STATE"), row("long", "x")]), "ID    STATE\nlong  x\n");
        assert_eq!(table(&[row("a", "")]), "a\n");
    }

    #[test]
    fn lines_break_at_spaces() {
        assert_eq!(wrapped("one two three", 7), ["one two", "three"]);
        assert_eq!(wrapped("much-too-long a", 4), ["much-too-long", "a"]);
        assert_eq!(wrapped("", 4), [""]);
    }
}
