//! Durations and sizes as an operator writes them.

use std::ops::RangeInclusive;
use std::time::Duration;

/// A time that must pass for something to happen: not nothing, and within what clocks can add.
pub const SOME_TIME: RangeInclusive<Duration> = Duration::from_millis(1)..=LONGEST;
/// The same where `0s` has a meaning.
pub const ANY_TIME: RangeInclusive<Duration> = Duration::ZERO..=LONGEST;

/// 366 days. Longer is a slip of the pen, and far from where adding to a clock could overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// `500ms`, `2s`, `5m`, `1h`, `1h30m`: a whole number and a unit, or several of them.
pub fn duration(text: &str) -> Option<Duration> {
    // A bare `0` would be taken; with a unit it is clear what was meant.
    text.ends_with(|c: char| c.is_ascii_alphabetic()).then(|| humantime::parse_duration(text).ok()).flatten()
}

/// What who wrote this meant, as far as that is clear: a number without its unit.
pub fn duration_meant(text: &str) -> Option<String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| format!("a number needs its unit: `{text}s`, `{text}ms`"))
}

/// A duration as [`duration`] reads it, to the millisecond.
pub fn show_duration(duration: &Duration) -> String {
    let millis = duration.as_millis();
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.into_iter().find(|(length, _)| millis >= *length && millis.is_multiple_of(*length)) {
        Some((length, unit)) => format!("{}{unit}", millis / length),
        None if millis == 0 => "0s".into(),
        None => format!("{millis}ms"),
    }
}

/// `512B`, `16KiB`, `1MiB`, `2GiB`; bytes.
pub fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// What who wrote this meant, as far as that is clear: units as other programs write them.
pub fn size_meant(text: &str) -> Option<String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).filter(|digits| *digits > 0).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    number.parse::<u64>().ok()?;
    let unit = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => "B",
        "k" | "kb" | "kib" => "KiB",
        "m" | "mb" | "mib" => "MiB",
        "g" | "gb" | "gib" => "GiB",
        _ => return None,
    };
    Some(format!("write `{number}{unit}`"))
}

/// A size as [`size`] reads it.
pub fn show_size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 30 && bytes.is_multiple_of(1 << 30) => format!("{}GiB", bytes >> 30),
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        bytes => format!("{bytes}B"),
    }
}

/// `20%`: a whole number of percent.
pub fn percent(text: &str) -> Option<u8> {
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// A part as [`percent`] reads it.
pub fn show_percent(percent: u8) -> String {
    format!("{percent}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_said_where_that_is_clear() {
        assert_eq!(duration_meant("10").unwrap(), "a number needs its unit: `10s`, `10ms`");
        assert_eq!(["", "soon", "-1s", "1:30"].map(duration_meant), [const { None }; 4]);
        for (text, meant) in
            [("1MB", "1MiB"), ("16k", "16KiB"), ("512", "512B"), ("2 gb", "2GiB"), ("8KIB", "8KiB")]
        {
            assert_eq!(size_meant(text), Some(format!("write `{meant}`")));
        }
        assert_eq!(["", "lots", "MB", "1TB", "1.5MB", "-1k"].map(size_meant), [const { None }; 6]);
    }

    #[test]
    fn a_part_is_a_whole_number_of_percent() {
        assert_eq!([0, 7, 100, 255].map(|part| percent(&show_percent(part))), [0, 7, 100, 255].map(Some));
        for text in ["", "%", "20", "20 %", "+20%", "-1%", "1.5%", "256%", "20%%"] {
            assert_eq!(percent(text), None, "{text}");
        }
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("2s"), Some(Duration::from_secs(2)));
        assert_eq!(duration("1h"), Some(Duration::from_secs(3600)));
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "0", "30", "s", "-1s", "2 sekunden", "1e3s", "99999999999999999999s", "１s", "2s\0"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_a_number_and_a_binary_unit() {
        assert_eq!(size("512B"), Some(512));
        assert_eq!(size("16KiB"), Some(16_384));
        assert_eq!(size("1MiB"), Some(1 << 20));
        assert_eq!(size("17179869183GiB"), Some(17_179_869_183 << 30));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "KiB",
            "16",
            "16K",
            "16kb",
            "16 KiB",
            "-1B",
            "1.5MiB",
            "17179869184GiB",
            "99999999999999999999B",
        ] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back_the_same() {
        for bytes in [0, 1, 1023, 1024, 16_384, 1 << 20, (1 << 20) + 1024, 3 << 30] {
            assert_eq!(size(&show_size(bytes)), Some(bytes));
        }
        for millis in [0, 1, 500, 2_000, 90_000, 5_400_000, 366 * 86_400_000] {
            let time = Duration::from_millis(millis);
            assert_eq!(duration(&show_duration(&time)), Some(time), "{}", show_duration(&time));
        }
    }
}
