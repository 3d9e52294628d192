//! The access log of a running balancer.
