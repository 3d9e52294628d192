//! demo

/// Runs the demo.
pub fn run(_nodes: u16, _port: u16) -> std::io::Result<()> {
    Ok(())
}
