//! A single-pass, limited walk of descriptor chains.
