//! What a guest asked its file system for, by kind of request: counted by the daemon, told in
//! events, in `--json` and as a table.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Requests of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Requests {
    /// How many.
    pub count: u64,
    /// From the guest, headers included.
    pub request_bytes: u64,
    /// To the guest, headers included.
    pub reply_bytes: u64,
}

/// The requests of a connection, by name (`LOOKUP`).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Traffic(pub BTreeMap<String, Requests>);

impl Traffic {
    /// Nothing came.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All kinds together.
    fn total(&self) -> Requests {
        self.0.values().fold(Requests::default(), |sum, row| Requests {
            count: sum.count + row.count,
            request_bytes: sum.request_bytes + row.request_bytes,
            reply_bytes: sum.reply_bytes + row.reply_bytes,
        })
    }
}

/// A table: the most frequent first, the sum last.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<(&str, Requests)> =
            self.0.iter().map(|(name, requests)| (name.as_str(), *requests)).collect();
        rows.sort_by_key(|&(_, requests)| Reverse(requests.count));
        rows.push(("all", self.total()));
        write!(f, "{:<16}{:>10}{:>14}{:>14}", "request", "count", "bytes in", "bytes out")?;
        for (name, Requests { count, request_bytes, reply_bytes }) in rows {
            write!(f, "\n{name:<16}{count:>10}{request_bytes:>14}{reply_bytes:>14}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_the_most_frequent_first_and_the_sum_last() {
        let row = |count| Requests { count, request_bytes: 48 * count, reply_bytes: 144 * count };
        let names = [("GETATTR", 2), ("LOOKUP", 57), ("INIT", 1)];
        let traffic =
            Traffic(names.map(|(name, count)| (name.to_owned(), row(count))).into_iter().collect());
        let table = traffic.to_string();
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(
            rows,
            [
                vec!["request", "count", "bytes", "in", "bytes", "out"],
                vec!["LOOKUP", "57", "2736", "8208"],
                vec!["GETATTR", "2", "96", "288"],
                vec!["INIT", "1", "48", "144"],
                vec!["all", "60", "2880", "8640"],
            ]
        );
    }
}
