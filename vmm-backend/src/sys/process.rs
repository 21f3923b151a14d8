//! What rustix lacks for processes: prctl, signals, parent death.
