//! The nodes a guest holds, in a pointer-free arena.
