//! The virtual guest and what the law tests share.
