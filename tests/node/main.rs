//! The node in process: its formats against recorded clusters, its bus against real Redis servers.

mod adapters;
mod connection;
mod failover;
mod corpus;
mod servers;
mod stand_in;
mod streams;
