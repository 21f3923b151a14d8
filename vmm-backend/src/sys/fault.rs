//! The hook that fails or stops at the N-th system call.
