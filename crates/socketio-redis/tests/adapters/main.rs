//! The node's adapters: their formats against recorded clusters, and against real Redis servers.

mod adapters;
mod connection;
mod failover;
mod failures;
mod corpus;
mod servers;
mod stand_in;
mod streams;
