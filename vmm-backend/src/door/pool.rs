//! A bounded pool for requests that may wait.
