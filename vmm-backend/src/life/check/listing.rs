//! The findings of a check, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::{Fate, Finding, Place};

/// Writes one line for each finding: what it is worth, the object, what is wrong with it, and what
/// becomes of it.
pub fn write_text(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    for finding in findings {
        let end = match finding.fate {
            Fate::Left => finding.damage.remedy().told(),
            Fate::Repaired => "repaired".to_owned(),
            Fate::Failed(error) => format!("cannot be repaired: {error}"),
        };
        writeln!(out, "{} {}: {}; {end}", worth(finding), place(finding), finding.damage)?;
    }
    out.flush()
}

const fn worth(finding: &Finding) -> &'static str {
    if finding.damage.is_leftover() { "leftover" } else { "damage" }
}

fn place(finding: &Finding) -> String {
    let path = finding.path.escape_ascii();
    match finding.place {
        Place::Upper => format!("/{path}"),
        Place::Work => format!("work directory, {path}"),
    }
}

/// One line of the JSON listing.
#[derive(Serialize)]
struct JsonFinding {
    worth: &'static str,
    place: &'static str,
    path: String,
    damage: String,
    remedy: String,
    repaired: bool,
}

/// Writes the findings as JSON, one object a line; paths are escaped where they are no ASCII text.
pub fn write_json(findings: &[Finding], out: &mut dyn Write) -> io::Result<()> {
    for finding in findings {
        let line = JsonFinding {
            worth: worth(finding),
            place: match finding.place {
                Place::Upper => "upper",
                Place::Work => "work",
            },
            path: finding.path.escape_ascii().to_string(),
            damage: finding.damage.to_string(),
            remedy: finding.damage.remedy().told(),
            repaired: finding.fate == Fate::Repaired,
        };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}
