//! Loading the config: the file, the environment and the files that the config names.
//!
//! This is the only place where the config touches the world. A relative path in the config counts from the
//! directory of the config file, so that it means the same whatever directory the balancer is started in.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::config::{self, AdminPlace, Config, Fault, Faults, LARGEST_FILE};

/// The most bytes of a file that the config names: a hundred keys of a secret file are a tenth of it.
const LARGEST_SECRET: usize = 64 << 10;

/// The config in the file at `path`, or everything that is wrong with it.
///
/// # Errors
///
/// The faults of the config, or the one fault that the file cannot be read.
pub fn load(path: &Path) -> Result<Config, Faults> {
    let file = path.display().to_string();
    // One byte more than it may have is enough to see that it has too many.
    let text = read_at_most(path, LARGEST_FILE + 1).map_err(|error| {
        let message = format!("the config cannot be read: {error}; name another file with -c FILE");
        Faults::new(&file, vec![Fault::of_file(message)])
    })?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let read = |named: &Path| secret(&directory.join(named));
    let mut config = config::resolve(&file, &text, &|name| std::env::var(name).ok(), &read)?;
    config.warnings.extend(open_token_file(&config, directory));
    Ok(config)
}

/// Where the admin API of the config in the file at `path` is, whatever else is wrong with the config.
///
/// # Errors
///
/// The faults of the section `admin`, or the one fault that the file cannot be read.
pub fn admin_place(path: &Path) -> Result<AdminPlace, Faults> {
    let file = path.display().to_string();
    let text = read_at_most(path, LARGEST_FILE + 1).map_err(|error| {
        let message = format!(
            "the config cannot be read: {error}; name that of the running balancer with -c FILE, or its admin \
             address with --admin ADDRESS"
        );
        Faults::new(&file, vec![Fault::of_file(message)])
    })?;
    let place = config::admin_place(&file, &text, &|name| std::env::var(name).ok())?;
    let directory = path.parent().unwrap_or(Path::new(""));
    Ok(AdminPlace { token_file: place.token_file.map(|named| directory.join(named)), ..place })
}

/// The content of a file that a config names.
///
/// # Errors
///
/// It cannot be read, or is larger than a file of secrets can be.
pub fn secret(path: &Path) -> io::Result<Vec<u8>> {
    let bytes = read_at_most(path, LARGEST_SECRET + 1)?;
    if bytes.len() > LARGEST_SECRET {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 64 KiB"));
    }
    Ok(bytes)
}

/// A token file that others can read is said: who reads it can do all that the API can.
fn open_token_file(config: &Config, directory: &Path) -> Option<Fault> {
    let named = config.admin.as_ref()?.token_file.as_ref()?;
    let mode = std::fs::metadata(directory.join(named)).ok()?.permissions().mode();
    let shown = named.display();
    let what = format!("admin: token_file: everybody on this machine can read {shown}; chmod 600 it");
    (mode & 0o004 != 0).then(|| Fault::of_file(what))
}

fn read_at_most(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(bytes as u64).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults_of(text: &[u8], secret: Option<&[u8]>) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("balancer.yaml");
        std::fs::write(&path, text).unwrap();
        if let Some(secret) = secret {
            std::fs::write(directory.path().join("secret"), secret).unwrap();
        }
        let faults = load(&path).map(|_| String::new()).unwrap_or_else(|faults| faults.to_string());
        faults.replace(directory.path().to_str().unwrap(), "DIR")
    }

    const SIGNED: &[u8] =
        b"pools:\n  a:\n    nodes: [{ id: x, address: \"x:1\" }, { id: y, address: \"y:1\" }]\n    \
        affinity: [cookie: { secret_file: secret }]\n";

    #[test]
    fn a_file_that_is_not_there_is_one_fault_with_its_name() {
        let faults = load(Path::new("/does/not/exist.yaml")).unwrap_err().to_string();
        assert!(
            faults.starts_with("/does/not/exist.yaml: the config cannot be read: No such file"),
            "{faults}"
        );
        assert!(load(Path::new("/")).unwrap_err().to_string().contains("directory"));
    }

    #[test]
    fn a_secret_file_is_found_beside_the_config() {
        let key = format!("k1:{}=\n", "A".repeat(43));
        assert_eq!(faults_of(SIGNED, Some(key.as_bytes())), "");
        let faults = faults_of(SIGNED, None);
        assert!(
            faults
                .starts_with("DIR/balancer.yaml:4:39: secret_file: secret: it cannot be read: No such file"),
            "{faults}"
        );
    }

    #[test]
    fn a_token_file_that_everybody_can_read_is_a_warning() {
        let directory = tempfile::tempdir().unwrap();
        let (path, token) = (directory.path().join("balancer.yaml"), directory.path().join("token"));
        std::fs::write(&token, "0123456789abcdef\n").unwrap();
        let nodes = "pools: { p: { nodes: [{ id: a, address: \"a:1\" }, { id: b, address: \"b:1\" }] } }";
        std::fs::write(&path, format!("admin: {{ token_file: token }}\n{nodes}\n")).unwrap();
        for (mode, warnings) in [(0o600, 0), (0o640, 0), (0o644, 1)] {
            std::fs::set_permissions(&token, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(load(&path).unwrap().warnings.len(), warnings, "{mode:o}");
        }
        assert_eq!(admin_place(&path).unwrap().token_file, Some(token));
    }

    #[test]
    fn what_is_too_large_is_not_read_whole() {
        let faults = faults_of(SIGNED, Some(&vec![b'#'; LARGEST_SECRET + 1]));
        assert!(faults.contains("larger than 64 KiB"), "{faults}");
        assert!(faults_of(&vec![b'#'; LARGEST_FILE + 1], None).contains("larger than 1 MiB"));
        let endless = load(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(endless.contains("larger than 1 MiB"), "{endless}");
    }
}
