//! Where this machine gets Debian from: its own apt sources, with another suite in them.
//!
//! Source: sources.list(5), both of its formats.

use std::fs;
use std::path::Path;

use crate::error::{At, ImageError};

/// Debian's suites and the words that move between them.
const SUITES: [&str; 13] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "stable",
    "oldstable",
    "oldoldstable",
    "testing",
    "unstable",
    "experimental",
    "rc-buggy",
];
/// Suites that have neither updates nor security beside them.
const ROLLING: [&str; 2] = ["sid", "unstable"];
/// What stands behind a suite's name for the suites that complete it.
const COMPLETIONS: [&str; 3] = ["", "-updates", "-security"];

/// One archive as apt knows it: a row for each URI and suite.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    /// `[signed-by=...]` with its brackets and a blank, or nothing.
    options: String,
    uri: String,
    suite: String,
    components: Vec<String>,
}

/// The rows of a `sources.list` that give `suite` from the archives that the apt configuration in
/// `etc` (`/etc/apt`) gives this machine's own suite from.
pub fn sources_for(suite: &str, etc: &Path) -> Result<String, ImageError> {
    let mut rows: Vec<String> = Vec::new();
    for source in debian_archives(read(etc)?) {
        let Some(completion) = completion(&source.suite) else { continue };
        if ROLLING.contains(&suite) && !completion.is_empty() {
            continue;
        }
        let Source { options, uri, .. } = source;
        let row = format!("deb {options}{uri} {suite}{completion} main\n");
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return Err(ImageError::NoSources { path: etc.to_owned(), suite: suite.to_owned() });
    }
    Ok(rows.concat())
}

/// `-updates` for `bookworm-updates`; nothing for a suite that is none of Debian's.
fn completion(suite: &str) -> Option<&'static str> {
    let base = |completion: &&str| suite.strip_suffix(completion).unwrap_or_default();
    COMPLETIONS.into_iter().find(|completion| SUITES.contains(&base(completion)))
}

/// Other archives may name their suites as Debian does: Debian's own have `main`, and, where any
/// has, `debian` or `debian-security` in their path.
fn debian_archives(mut sources: Vec<Source>) -> Vec<Source> {
    let is_debian = |source: &Source| {
        source.uri.split('/').any(|part| part == "debian" || part == "debian-security")
    };
    sources.retain(|source| source.components.iter().any(|component| component == "main"));
    if sources.iter().any(is_debian) {
        sources.retain(is_debian);
    }
    sources
}

fn read(etc: &Path) -> Result<Vec<Source>, ImageError> {
    let mut paths = vec![etc.join("sources.list")];
    let parts = etc.join("sources.list.d");
    if parts.is_dir() {
        for entry in fs::read_dir(&parts).at("read", &parts)? {
            paths.push(entry.at("read", &parts)?.path());
        }
    }
    paths.sort();
    let mut sources = Vec::new();
    for path in paths.iter().filter(|path| path.is_file()) {
        let parse = match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => one_line_sources,
            Some("sources") => stanza_sources,
            _ => continue,
        };
        sources.extend(parse(&fs::read_to_string(path).at("read", path)?));
    }
    Ok(sources)
}

/// `deb [options] uri suite components...`
fn one_line_sources(text: &str) -> Vec<Source> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter_map(one_line_source).collect()
}

fn one_line_source(line: &str) -> Option<Source> {
    let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        None => (String::new(), rest),
        Some(rest) => {
            let (options, rest) = rest.split_once(']')?;
            (format!("[{}] ", options.trim()), rest)
        }
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let (uri, suite) = (words.next()?, words.next()?);
    Some(Source { options, uri, suite, components: words.collect() })
}

/// Paragraphs of `Field: value`, in which lines that begin with a blank go on with the field.
fn stanza_sources(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')).chain([""]) {
        if line.trim().is_empty() {
            sources.extend(stanza(&std::mem::take(&mut fields)));
        } else if let (true, Some((_, value))) = (line.starts_with([' ', '\t']), fields.last_mut())
        {
            value.push('\n');
            value.push_str(line.trim());
        } else if let Some((field, value)) = line.split_once(':') {
            fields.push((field.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    sources
}

fn stanza(fields: &[(String, String)]) -> Vec<Source> {
    let value = |name: &str| {
        let field = fields.iter().find(|(field, _)| field == name);
        field.map(|(_, value)| value.as_str()).unwrap_or_default()
    };
    let words = |name: &str| value(name).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let is_enabled = !value("enabled").eq_ignore_ascii_case("no");
    if !is_enabled || !words("types").iter().any(|kind| kind == "deb") {
        return Vec::new();
    }
    // A key written into the stanza has no place on a line: apt's trusted keys must do then.
    let options = match value("signed-by") {
        keyring if keyring.starts_with('/') && !keyring.contains(char::is_whitespace) => {
            format!("[signed-by={keyring}] ")
        }
        _ => String::new(),
    };
    let mut sources = Vec::new();
    for uri in words("uris") {
        for suite in words("suites") {
            let (options, uri) = (options.clone(), uri.clone());
            sources.push(Source { options, uri, suite, components: words("components") });
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(etc.path().join(name), text).unwrap();
        }
        etc
    }

    const STANZAS: &str = "\
# a comment
Types: deb deb-src
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/a.gpg

Types: deb
URIs: http://mirror.test/debian-security/
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 Suites: sid

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main
";

    #[test]
    fn suite_is_replaced_and_its_completions_follow() {
        let etc = etc(&[("sources.list.d/debian.sources", STANZAS), ("sources.list", "")]);
        let trixie = "\
deb [signed-by=/usr/share/keyrings/a.gpg] http://mirror.test/debian trixie main
deb [signed-by=/usr/share/keyrings/a.gpg] http://mirror.test/debian trixie-updates main
deb http://mirror.test/debian-security/ trixie-security main
";
        assert_eq!(sources_for("trixie", etc.path()).unwrap(), trixie);
        let sid = "deb [signed-by=/usr/share/keyrings/a.gpg] http://mirror.test/debian sid main\n";
        assert_eq!(sources_for("sid", etc.path()).unwrap(), sid);
    }

    #[test]
    fn archives_of_others_are_not_taken_for_debian() {
        let list = "\
# deb http://comment.test/debian bookworm main
deb-src http://mirror.test/debian bookworm main
deb [ signed-by=/k.gpg trusted=yes ] http://mirror.test/debian bookworm main # the one
deb http://docker.test/linux/debian bookworm stable
deb http://vendor.test bookworm main
deb http://cloud.test/apt cloud-sdk-bookworm main
";
        let etc = etc(&[("sources.list", list), ("sources.list.d/x.list.save", list)]);
        let expected =
            "deb [signed-by=/k.gpg trusted=yes] http://mirror.test/debian bookworm main\n";
        assert_eq!(sources_for("bookworm", etc.path()).unwrap(), expected);
    }

    #[test]
    fn machine_without_debian_is_told_so() {
        let etc = etc(&[("sources.list", "deb http://mirror.test/ubuntu noble main\n")]);
        let error = sources_for("sid", etc.path()).unwrap_err().to_string();
        assert!(error.contains("suite 'sid'"), "{error}");
        let plain = etc_with_plain_mirror();
        let row = sources_for("trixie", plain.path()).unwrap();
        assert_eq!(row, "deb http://mirror.test/d trixie main\n");
    }

    fn etc_with_plain_mirror() -> tempfile::TempDir {
        etc(&[("sources.list", "deb http://mirror.test/d stable main\n")])
    }
}
