//! What happens in a guest's life, told to whom it concerns.

use std::sync::Arc;

use thinroot::control::Report;
use thinroot::filesystem::FileSystem;
use thinroot::fuse::session::Session;
use thinroot::layer::lower::{Change, Difference};
use thinroot::vm::error::say;
use thinroot::vm::events::{Event, EventWriter};
use thinroot::vm::traffic::{Requests, Traffic};

use super::ground::OnChange;

/// The requests since the last time this was asked; with `is_told` they go to standard error too
/// (`--stats`).
pub fn take_traffic<F: FileSystem>(session: &Session<F>, is_told: bool) -> Traffic {
    let counts = session.take_counts().into_iter().map(|count| {
        let requests = Requests {
            count: count.requests,
            request_bytes: count.request_bytes,
            reply_bytes: count.reply_bytes,
        };
        (count.name.to_owned(), requests)
    });
    let traffic = Traffic(counts.collect());
    if is_told && !traffic.is_empty() {
        say(&format!("requests served:\n{traffic}"));
    }
    traffic
}

/// Where events go, if anywhere.
#[derive(Clone, Debug)]
pub struct Events(Option<Arc<EventWriter>>);

impl Events {
    /// Events go to `writer`.
    pub fn to(writer: Option<EventWriter>) -> Self {
        Self(writer.map(Arc::new))
    }

    /// Writes one event.
    pub fn emit(&self, event: Event) {
        if let Some(writer) = &self.0 {
            writer.emit(event);
        }
    }

    /// Tells on what guest-init said.
    pub fn report(&self, report: Report) {
        self.emit(match report {
            Report::Ready(message) => Event::Ready { message },
            Report::Exited(status) => Event::Exited { status },
            Report::Failed(message) => Event::Failure { message },
        });
    }

    /// What is told of each lower object that was changed.
    pub fn on_change(&self) -> OnChange {
        let events = self.clone();
        Box::new(move |change| events.base_changed(change))
    }

    fn base_changed(&self, change: &Change) {
        let path = String::from_utf8_lossy(&change.path).into_owned();
        let difference = match change.difference {
            Difference::Contents => "contents",
            Difference::Attributes => "attributes",
            Difference::Gone => "gone",
        };
        let served = if change.is_served { "served" } else { "refused" };
        log::warn!("base: /{} was changed ({difference}) and is {served}", path.escape_debug());
        self.emit(Event::BaseChanged { path, change: difference.to_owned() });
    }
}
