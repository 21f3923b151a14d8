//! PID 1 of a thinroot guest.

fn main() {}
