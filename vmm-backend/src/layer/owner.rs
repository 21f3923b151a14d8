//! Who owns an upper object: natively, or by an override_stat mark.
