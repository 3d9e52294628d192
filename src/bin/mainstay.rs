//! The balancer's command line.

fn main() {}
