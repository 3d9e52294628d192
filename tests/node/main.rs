//! The node in process: its formats against recorded clusters, its bus against real Redis servers.

mod connection;
mod corpus;
mod servers;
