//! The files of Unix sockets: who may connect.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::balancer::{Balancer, config, node};
use crate::commands::{NO_PROBES, run};

#[test]
fn the_socket_of_a_listener_has_the_mode_and_the_group_of_the_config_also_after_a_reload() {
    let (node, sockets) = (node(), tempfile::tempdir().unwrap());
    let [path, admin] = ["web.sock", "admin.sock"].map(|name| sockets.path().join(name));
    let own = rustix::process::getegid().as_raw();
    let text = |client: &str, of_admin: &str| {
        let base = config(&node, "1s", NO_PROBES);
        let address = |path: &Path, more: &str| format!("\"unix:{}\"{more}", path.display());
        base.replacen("\"127.0.0.1:0\"", &address(&path, client), 1).replacen(
            "\"127.0.0.1:0\"",
            &address(&admin, of_admin),
            1,
        )
    };
    let modes = || [&path, &admin].map(|path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777);
    let mut balancer = Balancer::start(&text(", mode: \"0622\"", ""), |_| {});
    balancer.wait_until_serving();
    assert_eq!(modes(), [0o622, 0o600]);
    let folder = balancer.folder.path().to_owned();
    let place = format!("unix:{}", admin.display());
    let reload = |text: &str| {
        std::fs::write(folder.join("balancer.yaml"), text).unwrap();
        run(&folder, &["reload", "--admin", &place])
    };
    let output = reload(&text(&format!(", group: {own}"), ", mode: \"0660\""));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(modes(), [0o660, 0o660]);
    assert_eq!(std::fs::metadata(&path).unwrap().gid(), own);
    // A group that is not there changes nothing, not even what could have been changed.
    let output = reload(&text(", group: no-such-group-here", ", mode: \"0640\""));
    let fault = String::from_utf8(output.stderr).unwrap();
    assert!(
        fault.contains("balancer.yaml:1:24: cannot listen on ") && fault.contains("no group `no-such"),
        "{fault}"
    );
    assert_eq!((output.status.code(), modes()), (Some(1), [0o660, 0o660]));
    let output = reload(&text(", mode: \"0600\"", ""));
    assert_eq!((output.status.code(), modes()), (Some(0), [0o600, 0o600]));
}
