//! A session: one client's connection, whatever transport carries it. Its sid and handshake, what waits to be sent, its
//! heartbeat and its end.

pub(crate) mod binding;
pub(crate) mod connection;
pub(crate) mod connection_handler;
pub(crate) mod context;
pub(crate) mod counters;
pub(crate) mod ending;
pub(crate) mod frame;
pub(crate) mod handshake;
pub(crate) mod heartbeat;
pub(crate) mod message_handler;
pub(crate) mod packet;
pub(crate) mod sid;
pub(crate) mod state;
pub(crate) mod table;
pub(crate) mod timer_wheel;
pub(crate) mod urlencoded;
