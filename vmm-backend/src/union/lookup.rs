//! What a name means in the union.
