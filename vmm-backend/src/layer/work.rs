//! The work directory: staging, and the one way into the upper.
