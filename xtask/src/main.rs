//! Set-up, demo, tests and lanes.

fn main() {}
