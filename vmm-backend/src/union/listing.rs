//! What a guest has seen of upper directories: names and cookies.
