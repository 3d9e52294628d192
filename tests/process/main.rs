//! The real binary as its own process: signals, the service manager's sockets, exit codes, what it prints.

mod balancer;
mod check;
mod commands;
mod ending;
mod failures;
mod generate;
mod half_ended;
mod health;
mod limits;
mod memory;
mod rotation;
mod reload;
mod service;
mod sockets;
mod units;
mod upgrade;
