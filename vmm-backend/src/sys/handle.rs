//! name_to_handle_at and open_by_handle_at.
