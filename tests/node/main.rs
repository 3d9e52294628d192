//! The node in process: its formats against recorded clusters, its bus against real Redis servers.

mod corpus;
