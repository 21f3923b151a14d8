//! The timed KVM probe.
