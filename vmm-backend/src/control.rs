//! The control files of one guest: its command and its streams, as synthetic nodes beside the union.
