//! How nodes speak to each other: through Redis, in the formats of the Node.js adapters.

pub mod redis;
pub mod wire;
