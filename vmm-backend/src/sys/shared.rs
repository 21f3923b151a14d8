//! A growable shared memory (memfd) with a safe face.
