//! The program that a process runs, and a new process of it.
//!
//! It is the path that the process was started by, with every symbolic link in it: a link that leads to another release by
//! now leads the new process there. The kernel knows only the file behind the links; that is taken where the name that the
//! process was started under (its first argument) does not lead to this very file at the start, because whoever started
//! it has given it another name.

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

/// Says that the standard input is the socket of an upgrade; a socket there alone may be anything.
pub(super) const VARIABLE: &str = "MAINSTAY_HANDOVER";

/// What the kernel puts behind the path of a program whose file was replaced.
const REPLACED: &str = " (deleted)";

/// The file that this process runs, wherever its name leads.
const RUNNING: &str = "/proc/self/exe";

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where it stands.
    path: PathBuf,
    /// Without its own name.
    arguments: Vec<OsString>,
}

impl Program {
    /// What this process was started as; to be called at its start, while names lead where they led then. Another file may
    /// stand at the path later: that one is meant.
    ///
    /// # Errors
    ///
    /// The kernel does not say.
    pub fn own() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let (name, directory) =
            (arguments.next().unwrap_or_default(), env::current_dir().unwrap_or_default());
        let search = env::var_os("PATH").unwrap_or_default();
        let mut candidates = places(&name, &directory, &search).into_iter();
        let path = match candidates.find(|path| is_same(path, Path::new(RUNNING))) {
            Some(path) => path,
            None => by_the_kernel()?,
        };
        Ok(Self { path, arguments: arguments.collect() })
    }

    /// Where it stands.
    pub fn path(&self) -> &Path {
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
        // It names this process; the watchdog is the service's, and the new process feeds it.
        command.env_remove("WATCHDOG_PID");
        let started = command.spawn();
        started.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display())))
    }
}

/// Where a program of this name may have been started from, as execvp(3) looks for it.
fn places(name: &OsStr, directory: &Path, search: &OsStr) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.as_bytes().contains(&b'/') {
        return vec![directory.join(name)];
    }
    env::split_paths(search).map(|place| directory.join(place).join(name)).collect()
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| metadata(path).ok().map(|file| (file.dev(), file.ino()));
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// The file behind all links.
fn by_the_kernel() -> io::Result<PathBuf> {
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
    fn a_name_leads_where_the_shell_would_look() {
        let places = |name: &str| places(name.as_ref(), Path::new("/home"), OsStr::new("/usr/bin::tools"));
        let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(places("/opt/bin/mainstay"), paths(&["/opt/bin/mainstay"]));
        assert_eq!(places("bin/mainstay"), paths(&["/home/bin/mainstay"]));
        assert_eq!(places("./mainstay"), paths(&["/home/./mainstay"]));
        assert_eq!(
            places("mainstay"),
            paths(&["/usr/bin/mainstay", "/home/mainstay", "/home/tools/mainstay"])
        );
        assert_eq!(places(""), paths(&[]));
    }

    #[test]
    fn links_to_one_file_are_the_same_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, other] = ["file", "link", "other"].map(|name| folder.path().join(name));
        std::fs::write(&file, "one").unwrap();
        std::fs::write(&other, "one").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert!(
            is_same(&file, &link) && !is_same(&file, &other) && !is_same(&folder.path().join("none"), &file)
        );
    }
}
