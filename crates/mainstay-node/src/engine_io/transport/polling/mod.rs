//! A session by HTTP long-polling: its GETs and POSTs, the forms of their bodies, and their compression.

pub(crate) mod compression;
pub(crate) mod get;
pub(crate) mod jsonp;
pub(crate) mod payload;
pub(crate) mod requests;
