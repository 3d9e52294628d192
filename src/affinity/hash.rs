//! Weighted rendezvous hashing with a fixed seed: the same answer in every process and on every machine.
