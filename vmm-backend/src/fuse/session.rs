//! One guest's session: negotiation, dispatch, lookup counts.
