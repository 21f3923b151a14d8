//! File-system calls, each with the fault hook before it.
