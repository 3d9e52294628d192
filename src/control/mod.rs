//! control

pub mod ask;
pub mod load;
