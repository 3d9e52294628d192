//! The bundled application: rooms, direct messages and presence, for Socket.IO clients and for those of the JSON protocol.
//!
//! [`ChatApp`] carries out what [`request`] reads; [`socketio_app`] and [`ws_json_app`] connect it to the two
//! protocols, and `presence_queries` bounds what clients may ask of other nodes.

mod application;
mod presence_queries;
pub(crate) mod publication;
pub(crate) mod request;
pub(crate) mod socketio_app;
pub(crate) mod ws_json_app;

pub(crate) use application::ChatApp;
