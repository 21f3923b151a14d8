//! A read-only file mapping with a safe face.
