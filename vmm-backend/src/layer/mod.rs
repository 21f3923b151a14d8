//! Mechanism: the index of the lowers, the lower, the upper, its work directory and its marks.

pub mod acl;
pub mod arena;
pub mod blocks;
pub mod cell_name;
pub mod change;
pub mod data;
pub mod imported;
pub mod index;
pub mod leaving;
pub mod live;
pub mod lock;
pub mod lower;
pub mod mark;
pub mod owner;
pub mod seal;
#[cfg(test)]
mod testbed;
pub mod unsettled;
pub mod upper;
pub mod view;
pub mod work;
