//! The rows of a difference, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::{Change, Row};
use crate::filesystem::Kind;

/// Writes the rows as text: `M etc/hosts`, `R old -> new`, a directory with a `/` behind it.
///
/// A path with bytes that are no printable text stands in quotes, with those bytes as `\\xNN`.
pub fn write_text(rows: &[Row], out: &mut dyn Write) -> io::Result<()> {
    for row in rows {
        let slash = if row.kind == Kind::Directory { "/" } else { "" };
        let letter = row.change.letter();
        match &row.change {
            Change::Renamed(from) => {
                writeln!(out, "{letter} {} -> {}", shown(from, slash), shown(&row.path, slash))?;
            }
            _ => writeln!(out, "{letter} {}", shown(&row.path, slash))?,
        }
    }
    out.flush()
}

fn shown(path: &[u8], slash: &str) -> String {
    let path = if path.is_empty() { b"." } else { path };
    let is_plain = |text: &&str| {
        !text.chars().any(|letter| letter.is_control() || matches!(letter, '"' | '\\'))
    };
    match str::from_utf8(path).ok().filter(is_plain) {
        Some(text) => format!("{text}{slash}"),
        None => format!("\"{}{slash}\"", path.escape_ascii()),
    }
}

/// One line of the JSON listing. Paths that are no UTF-8 are given escaped, and in hexadecimal.
#[derive(Serialize)]
struct JsonRow {
    change: &'static str,
    kind: &'static str,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_hex: Option<String>,
}

/// Writes the rows as JSON, one object a line: `change`, `kind`, `path`, and `from` of a renamed one.
pub fn write_json(rows: &[Row], out: &mut dyn Write) -> io::Result<()> {
    for row in rows {
        let from = match &row.change {
            Change::Renamed(from) => Some(from.as_slice()),
            _ => None,
        };
        let line = JsonRow {
            change: row.change.word(),
            kind: kind_word(row.kind),
            path: text_of(&row.path),
            path_hex: hexadecimal(&row.path),
            from: from.map(text_of),
            from_hex: from.and_then(hexadecimal),
        };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn text_of(path: &[u8]) -> String {
    str::from_utf8(path).map_or_else(|_| path.escape_ascii().to_string(), str::to_owned)
}

fn hexadecimal(path: &[u8]) -> Option<String> {
    let is_text = str::from_utf8(path).is_ok();
    (!is_text).then(|| path.iter().map(|byte| format!("{byte:02x}")).collect())
}

const fn kind_word(kind: Kind) -> &'static str {
    match kind {
        Kind::File => "file",
        Kind::Directory => "directory",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "char-device",
        Kind::BlockDevice => "block-device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(path: &[u8], kind: Kind, change: Change) -> Row {
        Row { path: path.to_owned(), kind, change }
    }

    #[test]
    fn rows_are_lines_whatever_bytes_a_path_has() {
        let rows = [
            row(b"", Kind::Directory, Change::Metadata),
            row(b"a b", Kind::File, Change::Added),
            row("gr\u{fc}n".as_bytes(), Kind::File, Change::Modified),
            row(b"bad\xff\n", Kind::Directory, Change::Deleted),
            row(b"new", Kind::Directory, Change::Renamed(b"old\"".to_vec())),
        ];
        let mut text = Vec::new();
        write_text(&rows, &mut text).unwrap();
        let expected = "m ./\nA a b\nM gr\u{fc}n\nD \"bad\\xff\\n/\"\nR \"old\\\"/\" -> new/\n";
        assert_eq!(String::from_utf8(text).unwrap(), expected);

        let mut json = Vec::new();
        write_json(&rows[3..], &mut json).unwrap();
        let expected = "{\"change\":\"deleted\",\"kind\":\"directory\",\"path\":\"bad\\\\xff\\\\n\",\
                        \"path_hex\":\"626164ff0a\"}\n\
                        {\"change\":\"renamed\",\"kind\":\"directory\",\"path\":\"new\",\
                        \"from\":\"old\\\"\"}\n";
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }
}
