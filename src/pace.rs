//! Pacing: back-off with jitter and the schedule of a drain.
