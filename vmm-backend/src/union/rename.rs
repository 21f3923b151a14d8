//! Rename in all its forms.
