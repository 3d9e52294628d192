//! control

pub mod load;
