//! What the fuzz targets do, as plain functions that build on stable: `fuzz_targets` are thin wrappers for
//! libFuzzer, and `tests/fuzz_corpus.rs` of the root package runs the same functions over the corpora.
//!
//! Each target looks for panics and for broken promises: it compares the code with a second, simpler reading of the
//! same bytes where there is one, and with itself in other pieces, forms and orders.

pub mod config;
pub mod cookie;
pub mod framing;
pub mod request_stream;
pub mod input;
pub mod packet;
pub mod proxy;
pub mod reader;
pub mod record;
pub mod reference;
pub mod sid;
pub mod tracker;
pub mod tunnel;
pub mod upgrade;
pub mod value;
pub mod wire;

/// A target by the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("config", config::run),
    ("cookie", cookie::run),
    ("framing", framing::run),
    ("request_stream", request_stream::run),
    ("handover", tunnel::handover),
    ("packet", packet::run),
    ("payload", reader::payload),
    ("pipe", tracker::pipe),
    ("proxy", proxy::run),
    ("reader", reader::run),
    ("record", record::run),
    ("sid", sid::run),
    ("tracker", tracker::run),
    ("tunnel", tunnel::run),
    ("upgrade", upgrade::run),
    ("value", value::run),
    ("wire", wire::run),
];
