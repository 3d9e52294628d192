//! Loading the config: the file, the environment and the files that the config names.
//!
//! No other module does I/O for the config. A relative path in the config counts from the directory of the config file,
//! whatever directory the balancer is started in.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh3::Xxh3;

use super::listen_spec::ListenSpec;
use crate::config::{self, AdminEndpoint, Config, Fault, Faults, LARGEST_FILE};

/// The most bytes of a file that the config names: the certificate authorities of browsers take a quarter of it.
const MAX_NAMED_FILE: usize = 1 << 20;

/// A config that was read, and its files.
pub struct LoadedConfig {
    /// The config, or everything that is wrong with it.
    pub config: Result<Config, Faults>,
    /// The config file and all that it names, as far as they were asked for.
    pub files: Vec<PathBuf>,
    /// Of the names and contents of these files: with the same digest nothing has changed.
    pub digest: u64,
}

/// The config in the file at `path`, or everything that is wrong with it.
///
/// # Errors
///
/// The faults of the config, or the one fault that the file cannot be read.
pub fn load(path: &Path) -> Result<Config, Faults> {
    read_config(path).config
}

/// Reads the config in the file at `path`, and records which files were read.
pub(crate) fn read_config(path: &Path) -> LoadedConfig {
    let file = path.display().to_string();
    let directory = path.parent().unwrap_or(Path::new(""));
    let seen = RefCell::new(FileLog::default());
    // One byte more than it may have is enough to see that it has too many.
    let text = seen.borrow_mut().read(path, LARGEST_FILE + 1);
    let read = |named: &Path| {
        let path = directory.join(named);
        let content = seen.borrow_mut().read(&path, MAX_NAMED_FILE + 1).and_then(within_limit);
        content.map_err(|error| with_tried_path(named, &path, error))
    };
    let mut config = match text {
        Ok(text) => config::resolve_at(&file, unix_time(), &text, &|name| std::env::var(name).ok(), &read),
        Err(error) => {
            let what = unreadable(path, error);
            let message = format!("{what}; name another file with -c FILE, or in MAINSTAY_CONFIG");
            Err(Faults::new(&file, vec![Fault::of_file(message)]))
        }
    };
    if let Ok(config) = &mut config {
        let warning = token_file_warning(config, directory);
        let unknown = unknown_groups(config);
        config.warnings.extend(warning.into_iter().chain(unknown));
    }
    let FileLog { files, digest } = seen.into_inner();
    LoadedConfig { config, files, digest: digest.digest() }
}

impl LoadedConfig {
    /// The fault where the reading itself was aborted.
    pub(super) fn aborted(path: &Path) -> Self {
        let fault = Fault::of_file("reading the config broke off; this is a bug");
        let config = Err(Faults::new(&path.display().to_string(), vec![fault]));
        Self { config, files: vec![path.to_owned()], digest: 0 }
    }
}

/// The files that were read so far.
#[derive(Default)]
struct FileLog {
    files: Vec<PathBuf>,
    digest: Xxh3,
}

impl FileLog {
    fn read(&mut self, path: &Path, most: usize) -> io::Result<Vec<u8>> {
        let content = read_at_most(path, most);
        // Lengths between the parts, so that no two readings give the same bytes.
        let mut part = |bytes: &[u8]| {
            self.digest.update(&bytes.len().to_le_bytes());
            self.digest.update(bytes);
        };
        part(path.as_os_str().as_encoded_bytes());
        match &content {
            Ok(bytes) => part(bytes),
            Err(error) => part(error.to_string().as_bytes()),
        }
        self.files.push(path.to_owned());
        content
    }
}

fn unix_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// The admin address in the config file at `path`, whatever else is wrong with the config.
///
/// # Errors
///
/// The faults of the section `admin`, or the one fault that the file cannot be read.
pub fn load_admin_address(path: &Path) -> Result<AdminEndpoint, Faults> {
    let file = path.display().to_string();
    let text = read_at_most(path, LARGEST_FILE + 1).map_err(|error| {
        let message = format!(
            "{}; name that of the running balancer with -c FILE, or its admin address with --admin ADDRESS",
            unreadable(path, error)
        );
        Faults::new(&file, vec![Fault::of_file(message)])
    })?;
    let place = config::admin_place(&file, &text, &|name| std::env::var(name).ok())?;
    let directory = path.parent().unwrap_or(Path::new(""));
    Ok(AdminEndpoint { token_file: place.token_file.map(|named| directory.join(named)), ..place })
}

/// The message for a config that cannot be read, with the path that was tried.
fn unreadable(path: &Path, error: io::Error) -> String {
    format!("the config cannot be read: {}", with_tried_path(path, path, error))
}

/// The error, with the absolute path where the written one is relative.
fn with_tried_path(written: &Path, path: &Path, error: io::Error) -> io::Error {
    match std::path::absolute(path) {
        Ok(tried) if written.is_relative() => {
            io::Error::new(error.kind(), format!("{error}, looked for at {}", tried.display()))
        }
        _ => error,
    }
}

/// The content of a file that a config names.
///
/// # Errors
///
/// It cannot be read, or is larger than a file of secrets can be.
pub fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    within_limit(read_at_most(path, MAX_NAMED_FILE + 1)?)
}

fn within_limit(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if bytes.len() > MAX_NAMED_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    Ok(bytes)
}

/// The warning of a token file that others can read: who reads it may use the whole API.
fn token_file_warning(config: &Config, directory: &Path) -> Option<Fault> {
    let named = config.admin.as_ref()?.token_file.as_ref()?;
    let mode = std::fs::metadata(directory.join(named)).ok()?.permissions().mode();
    let shown = named.display();
    let what = format!("admin: token_file: everybody on this machine can read {shown}; chmod 600 it");
    (mode & 0o004 != 0).then(|| Fault::of_file(what))
}

/// The warnings of groups of Unix sockets that this machine does not have: binding would fail.
fn unknown_groups(config: &Config) -> Vec<Fault> {
    let listeners = config.listeners.iter().map(ListenSpec::for_clients);
    let listeners = listeners.zip(config.places.listeners.iter().copied().map(Some));
    let admin = config.admin.as_ref().map(|admin| (ListenSpec::for_admin(admin), config.places.admin));
    let unknown = listeners.chain(admin).filter_map(|(spec, at)| {
        let message = format!("group: {}", spec.permissions().err()?);
        Some(at.map_or_else(|| Fault::of_file(message.clone()), |at| Fault::new(at, message.clone())))
    });
    unknown.collect()
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
        assert_eq!(load_admin_address(&path).unwrap().token_file, Some(token));
    }

    #[test]
    fn what_is_too_large_is_not_read_whole() {
        let faults = faults_of(SIGNED, Some(&vec![b'#'; MAX_NAMED_FILE + 1]));
        assert!(faults.contains("larger than 1 MiB"), "{faults}");
        assert!(faults_of(&vec![b'#'; LARGEST_FILE + 1], None).contains("larger than 1 MiB"));
        let endless = load(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(endless.contains("larger than 1 MiB"), "{endless}");
    }
}
