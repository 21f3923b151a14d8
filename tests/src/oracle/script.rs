//! Scripts: what actors do to a tree, one operation a line.
//!
//! `ACTOR VERB WORD…`: who does what ([`super::actor`] knows the verbs). `-` stands for the stage:
//! `- begin` ends what makes the lower, `- remount` and `- crash` end and start the daemon. A word
//! holds any bytes: what is not printed plainly is `%XX`. Lines that begin with `#` are remarks.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    words: Vec<String>,
}

/// Who does something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// The actor of this number.
    Actor(usize),
    /// Whoever stands outside of the tree.
    Stage,
}

impl Operation {
    /// The operation on a line; `None` for a remark or nothing.
    pub fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
        let is_remark = words.first().is_none_or(|word| word.starts_with('#'));
        (!is_remark && words.len() > 1).then_some(Self { words })
    }

    /// The same by an actor, or by the stage.
    pub fn new(who: Who, words: &str) -> Self {
        let who = match who {
            Who::Actor(number) => number.to_string(),
            Who::Stage => String::from("-"),
        };
        let words = std::iter::once(who).chain(words.split_whitespace().map(str::to_owned));
        Self { words: words.collect() }
    }

    /// Who does it.
    pub fn who(&self) -> Who {
        self.words[0].parse().map_or(Who::Stage, Who::Actor)
    }

    /// What is done.
    pub fn verb(&self) -> &str {
        &self.words[1]
    }

    /// With what.
    pub fn words(&self) -> &[String] {
        &self.words[2..]
    }

    /// Whether the stage does this.
    pub fn is_direction(&self, verb: &str) -> bool {
        self.who() == Who::Stage && self.verb() == verb
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

/// Every operation of a text.
pub fn parse(text: &str) -> Vec<Operation> {
    text.lines().filter_map(Operation::parse).collect()
}

/// The text of a script.
pub fn text(script: &[Operation]) -> String {
    script.iter().map(|operation| format!("{operation}\n")).collect()
}

/// The bytes of a word.
pub fn bytes(word: &str) -> OsString {
    let mut rest = word.as_bytes();
    let mut bytes = Vec::new();
    while let Some((first, behind)) = rest.split_first() {
        let code = behind.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        match byte.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[2..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// The word for some bytes, as [`bytes`] reads it.
pub fn word(bytes: &OsStr) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'%';
    let each = bytes.as_bytes().iter().map(|byte| match is_plain(byte) {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02x}"),
    });
    each.collect()
}

/// Makes a script that fails as short as leaving some out can make it.
pub fn shrink(
    mut script: Vec<Operation>,
    fails: &mut dyn FnMut(&[Operation]) -> bool,
) -> Vec<Operation> {
    let mut step = script.len().div_ceil(2);
    loop {
        let before = script.len();
        // From the end: what comes later rests on what was earlier.
        let mut end = script.len();
        while end > 0 {
            let start = end.saturating_sub(step);
            let rest = [&script[..start], &script[end.min(script.len())..]].concat();
            if fails(&rest) {
                script = rest;
            }
            end = start;
        }
        if step == 1 && script.len() == before {
            return script;
        }
        step = step.div_ceil(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn script_is_read_as_it_is_written() {
        let text_of_two = "0 write a%ff creat 0 5\n- remount\n";
        let script = parse(&format!("# a remark\n\n{text_of_two}"));
        assert_eq!(text(&script), text_of_two);
        assert_eq!((script[0].who(), script[0].verb()), (Who::Actor(0), "write"));
        assert!(script[1].is_direction("remount"));
        let name = bytes(&script[0].words()[0]);
        assert_eq!(name.as_bytes(), b"a\xff");
        assert_eq!(word(&name), "a%ff");
    }

    #[test]
    fn script_shrinks_to_what_fails() {
        let script: Vec<_> =
            (0..100).map(|n| Operation::new(Who::Actor(n % 3), &format!("look {n}"))).collect();
        let is_in = |script: &[Operation], word: &str| script.iter().any(|o| o.words() == [word]);
        let shortest =
            shrink(script, &mut |some| is_in(some, "17") && is_in(some, "70") && some.len() > 1);
        assert_eq!(text(&shortest), "2 look 17\n1 look 70\n");
    }
}
