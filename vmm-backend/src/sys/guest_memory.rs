//! Vectored file input and output straight to and from guest memory.
