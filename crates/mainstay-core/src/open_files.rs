//! The limit of open files, and the faults of reaching it.

use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How many files may be open.
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Raises the limit as far as the process may (from the soft limit to the hard one); gives what it is then. The soft
/// limit is low by default only for programs that use `select`.
pub fn raise_limit() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Where that is not allowed, the limit stays as it is, and is what counts.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    limit()
}

/// Whether the process (EMFILE), the machine (ENFILE) or its memory for sockets is used up. Nobody's peer is to
/// blame, and it passes when other connections end.
pub fn is_exhausted(error: &io::Error) -> bool {
    let used_up = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| used_up.contains(&Errno::from_raw_os_error(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_the_hard_one_once() {
        let raised = raise_limit();
        assert_eq!(Some(raised), getrlimit(Resource::Nofile).maximum.or(Some(u64::MAX)));
        assert_eq!((raise_limit(), limit()), (raised, raised));
    }

    #[test]
    fn what_is_used_up_is_told_from_what_a_peer_did() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS] {
            assert!(is_exhausted(&errno.into()), "{errno}");
        }
        for errno in [Errno::CONNREFUSED, Errno::CONNABORTED, Errno::ADDRNOTAVAIL] {
            assert!(!is_exhausted(&errno.into()), "{errno}");
        }
        assert!(!is_exhausted(&io::Error::other("x")));
    }
}
