//! How nodes speak to each other: within one process, or through Redis in the formats of the Node.js adapters.

pub mod memory;
pub mod redis;
pub mod wire;
