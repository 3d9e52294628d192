//! The usual `process_*` numbers, read from `/proc/self` at each scrape.
//!
//! A few lines of parsing instead of a crate. A number that the kernel does not give (no `/proc`, a
//! format that is not known) is left out; nothing fails.

use std::fs;
use std::path::Path;

/// Ticks per second in `/proc` times: `USER_HZ` is 100 on every architecture that Linux runs servers on.
const TICKS: f64 = 100.0;

/// What stays the same while the process lives.
#[derive(Debug, Default)]
pub struct ProcessConstants {
    /// Unix time of the process's start, seconds.
    start_time: Option<f64>,
}

/// The process at one moment.
#[derive(Debug, Default, PartialEq)]
pub struct ProcessSample {
    /// User and system time of all threads, seconds.
    pub cpu_seconds: Option<f64>,
    /// Open file descriptors.
    pub open_fds: Option<f64>,
    /// The soft limit of them; `u64::MAX` where there is none.
    pub max_fds: Option<f64>,
    /// Address space, bytes.
    pub virtual_memory: Option<f64>,
    /// The soft limit of it in bytes; `u64::MAX` where there is none.
    pub virtual_memory_max: Option<f64>,
    /// Memory in RAM, bytes.
    pub resident_memory: Option<f64>,
    /// Unix time of the process's start, seconds.
    pub start_time: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
}

impl ProcessConstants {
    /// Reads them.
    pub fn read() -> Self {
        let boot = boot_time(&text("/proc/stat"));
        let since_boot = stat_field(&text("/proc/self/stat"), START_TIME);
        Self { start_time: boot.zip(since_boot).map(|(boot, ticks)| boot + ticks / TICKS) }
    }

    /// The process now.
    pub fn sample(&self) -> ProcessSample {
        let stat = text("/proc/self/stat");
        let status = text("/proc/self/status");
        let limits = text("/proc/self/limits");
        let ticks = stat_field(&stat, USER_TIME).zip(stat_field(&stat, SYSTEM_TIME));
        ProcessSample {
            cpu_seconds: ticks.map(|(user, system)| (user + system) / TICKS),
            open_fds: open_fds(Path::new("/proc/self/fd")),
            max_fds: soft_limit(&limits, "Max open files"),
            virtual_memory: status_kilobytes(&status, "VmSize:"),
            virtual_memory_max: soft_limit(&limits, "Max address space"),
            resident_memory: status_kilobytes(&status, "VmRSS:"),
            start_time: self.start_time,
            threads: stat_field(&stat, THREADS),
        }
    }
}

/// A file that cannot be read is as an empty one: its numbers are left out.
fn text(path: &str) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// Places in `/proc/self/stat` after the program's name, whose end is the last `)`: proc_pid_stat(5) counts from
/// 1 and has two fields up to there.
const USER_TIME: usize = 14 - 3;
const SYSTEM_TIME: usize = 15 - 3;
const THREADS: usize = 20 - 3;
const START_TIME: usize = 22 - 3;

fn stat_field(stat: &str, place: usize) -> Option<f64> {
    // The name may hold spaces and parentheses of its own.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(place)?.parse().ok()
}

fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn status_kilobytes(status: &str, key: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: f64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

fn soft_limit(limits: &str, key: &str) -> Option<f64> {
    let value = limits.lines().find_map(|line| line.strip_prefix(key))?;
    match value.split_ascii_whitespace().next()? {
        // As Prometheus' own client says it: the largest number the kernel could have meant.
        "unlimited" => Some(u64::MAX as f64),
        number => number.parse().ok(),
    }
}

/// Linux 6.2 and later says the number as the directory's size; before, the entries have to be counted, which
/// takes tens of milliseconds with 100,000 of them.
fn open_fds(directory: &Path) -> Option<f64> {
    let said = fs::metadata(directory).ok()?.len();
    let count = match usize::try_from(said) {
        // The listing holds one descriptor itself.
        Ok(0) | Err(_) => fs::read_dir(directory).ok()?.count().saturating_sub(1),
        Ok(said) => said,
    };
    u32::try_from(count).ok().map(f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_name_with_spaces_and_parentheses_moves_no_field() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 9 0 12345 1000 7";
        assert_eq!(stat_field(stat, USER_TIME), Some(250.0));
        assert_eq!(stat_field(stat, SYSTEM_TIME), Some(50.0));
        assert_eq!(stat_field(stat, THREADS), Some(9.0));
        assert_eq!(stat_field(stat, START_TIME), Some(12345.0));
    }

    #[test]
    fn sizes_are_bytes_and_no_limit_is_the_largest_number() {
        assert_eq!(status_kilobytes("Name:\tx\nVmRSS:\t    12 kB\n", "VmRSS:"), Some(12.0 * 1024.0));
        let limits = "Limit   Soft Limit Hard Limit Units\n\
                      Max open files            1024                 524288               files\n\
                      Max address space         unlimited            unlimited            bytes\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(soft_limit(limits, "Max address space"), Some(u64::MAX as f64));
    }

    #[test]
    fn what_the_kernel_does_not_give_is_left_out() {
        for garbage in
            ["", ")", "1 (x)", "1 (x) S a b c", "btime", "btime x", "VmRSS: many kB", "Max open files"]
        {
            assert_eq!(stat_field(garbage, USER_TIME), None, "{garbage}");
            assert_eq!(boot_time(garbage), None, "{garbage}");
            assert_eq!(status_kilobytes(garbage, "VmRSS:"), None, "{garbage}");
            assert_eq!(soft_limit(garbage, "Max open files"), None, "{garbage}");
        }
        assert_eq!(text("/proc/self/no such file"), "");
        assert_eq!(open_fds(Path::new("/proc/self/no such directory")), None);
    }

    #[test]
    fn open_descriptors_are_counted_on_kernels_that_do_not_say_them() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("0"), "").unwrap();
        // What an ordinary directory says of itself stands for no number; it only has to be one.
        assert!(open_fds(directory.path()).is_some());
        assert!(open_fds(Path::new("/proc/self/fd")).unwrap() >= 1.0);
    }

    #[test]
    fn this_very_process_has_all_eight() {
        let sample = ProcessConstants::read().sample();
        for value in
            [sample.open_fds, sample.max_fds, sample.threads, sample.resident_memory, sample.start_time]
        {
            assert!(value.unwrap() >= 1.0, "{sample:?}");
        }
        assert!(sample.cpu_seconds.is_some(), "{sample:?}");
        assert!(sample.virtual_memory.unwrap() >= sample.resident_memory.unwrap(), "{sample:?}");
        assert!(sample.virtual_memory_max.is_some(), "{sample:?}");
    }
}
