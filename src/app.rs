//! app

/// Runs the balancer.
pub fn run(_config: crate::config::Config) -> std::io::Result<()> {
    Ok(())
}
