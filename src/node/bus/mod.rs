//! What connects nodes: within one process, or through Redis.

pub mod memory;
pub mod redis;
pub mod wire;
