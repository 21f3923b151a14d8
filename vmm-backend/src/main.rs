//! The `thinroot` program: wiring only.

fn main() {}
