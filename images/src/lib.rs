//! Boot images and base recipes.
