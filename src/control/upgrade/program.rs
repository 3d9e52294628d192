//! The program that this process runs, and how a new process of it is started.
//!
//! It is the path that the process was started by, with its symbolic links unresolved: a link that points to another
//! release by now leads the new process there. The kernel knows only the file behind the links. That file is taken when
//! the first argument does not lead to it at the start, because whoever started the process gave it another name.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::metadata;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

/// Set where the standard input is the socket of an upgrade: a socket there may be anything.
pub(super) const VARIABLE: &str = "MAINSTAY_HANDOVER";

/// What the kernel appends to the path of a program whose file was replaced.
const REPLACED: &str = " (deleted)";

/// The file that this process runs.
const RUNNING: &str = "/proc/self/exe";

/// A program and its arguments.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    /// Without the first, its own name.
    arguments: Vec<OsString>,
}

impl Program {
    /// The program of this process, to be called at its start, before links change. A later file at the same path is the
    /// new program.
    ///
    /// # Errors
    ///
    /// The kernel does not tell the path.
    pub(crate) fn own() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let (name, directory) =
            (arguments.next().unwrap_or_default(), env::current_dir().unwrap_or_default());
        let search = env::var_os("PATH").unwrap_or_default();
        let mut candidates = search_paths(&name, &directory, &search).into_iter();
        let path = match candidates.find(|path| is_same_file(path, Path::new(RUNNING))) {
            Some(path) => path,
            None => resolved_path()?,
        };
        Ok(Self { path, arguments: arguments.collect() })
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Starts it, with the socket of an upgrade as its standard input.
    ///
    /// # Errors
    ///
    /// As in execve(2), with the path.
    pub(super) fn start(&self, socket: OwnedFd) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env(VARIABLE, "1").stdin(Stdio::from(socket));
        // It names this process; the new process feeds the watchdog of the service.
        command.env_remove("WATCHDOG_PID");
        let started = command.spawn();
        started.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display())))
    }
}

/// The paths at which execvp(3) looks for a program of this name.
fn search_paths(name: &OsStr, directory: &Path, search: &OsStr) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.as_bytes().contains(&b'/') {
        return vec![directory.join(name)];
    }
    env::split_paths(search).map(|folder| directory.join(folder).join(name)).collect()
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// The path of the running file, with its links resolved.
fn resolved_path() -> io::Result<PathBuf> {
    let path = env::current_exe()?;
    Ok(match path.to_str().and_then(|path| path.strip_suffix(REPLACED)) {
        Some(path) => path.into(),
        None => path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_for_as_the_shell_does() {
        let paths_of =
            |name: &str| search_paths(name.as_ref(), Path::new("/home"), OsStr::new("/usr/bin::tools"));
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(paths_of("/opt/bin/mainstay"), paths(&["/opt/bin/mainstay"]));
        assert_eq!(paths_of("bin/mainstay"), paths(&["/home/bin/mainstay"]));
        assert_eq!(paths_of("./mainstay"), paths(&["/home/./mainstay"]));
        assert_eq!(
            paths_of("mainstay"),
            paths(&["/usr/bin/mainstay", "/home/mainstay", "/home/tools/mainstay"])
        );
        assert_eq!(paths_of(""), paths(&[]));
    }

    #[test]
    fn links_to_one_file_are_the_same_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, other] = ["file", "link", "other"].map(|name| folder.path().join(name));
        std::fs::write(&file, "one").unwrap();
        std::fs::write(&other, "one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(
            is_same_file(&file, &link)
                && !is_same_file(&file, &other)
                && !is_same_file(&folder.path().join("none"), &file)
        );
    }
}
