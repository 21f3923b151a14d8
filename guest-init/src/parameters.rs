//! What the kernel command line says to guest-init.

/// The `thinroot.*` words of the kernel command line; the rest is the real init's.
#[derive(Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `thinroot.tag=`: the virtiofs tag of the union.
    pub tag: Vec<u8>,
    /// `thinroot.init=`: what to boot when the host does not say.
    pub init: Option<Vec<u8>>,
}

impl Parameters {
    /// Reads the text of `/proc/cmdline`; the last of several words with one key wins, and
    /// what follows ` -- ` is not the kernel's but init's, and not looked at.
    pub fn parse(command_line: &[u8]) -> Parameters {
        let mut parameters = Parameters { tag: b"thinroot".to_vec(), init: None };
        for word in words(command_line) {
            if word == b"--" {
                break;
            } else if let Some(tag) = word.strip_prefix(b"thinroot.tag=") {
                parameters.tag = tag.to_vec();
            } else if let Some(init) = word.strip_prefix(b"thinroot.init=") {
                parameters.init = Some(init.to_vec());
            }
        }
        parameters
    }
}

/// Splits at blanks outside double quotes, as the kernel's `next_arg` does, and drops the quotes.
fn words(line: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word = Vec::new();
    let mut quoted = false;
    for &byte in line {
        match byte {
            b'"' => quoted = !quoted,
            b' ' | b'\n' | b'\t' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(byte),
        }
    }
    words.push(word);
    words.retain(|word: &Vec<u8>| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_guest_init_are_found_among_the_kernels() {
        type Row = (&'static [u8], &'static [u8], Option<&'static [u8]>);
        let rows: [Row; 7] = [
            (b"", b"thinroot", None),
            (b"console=ttyS0 quiet\n", b"thinroot", None),
            (b"thinroot.tag=a thinroot.tag=b\n", b"b", None),
            (b"ro thinroot.init=/bin/sh", b"thinroot", Some(b"/bin/sh")),
            (b"thinroot.tag=\"two words\" x", b"two words", None),
            (b"\"thinroot.tag=two words\"", b"two words", None),
            (b"thinroot.tag=a -- thinroot.tag=b", b"a", None),
        ];
        for (line, tag, init) in rows {
            let parameters = Parameters::parse(line);
            assert_eq!(parameters.tag, tag, "{}", line.escape_ascii());
            assert_eq!(parameters.init.as_deref(), init, "{}", line.escape_ascii());
        }
    }
}
