//! The Grafana dashboard: what its queries name exists.
