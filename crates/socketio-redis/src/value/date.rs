//! The text that JavaScript gives to a moment: `Date.prototype.toISOString`, from a MessagePack timestamp.
//!
//! Both MessagePack libraries of the peers send a `Date` as extension −1; a client must get this text.

/// The furthest that a JavaScript date goes from 1970, in milliseconds (ECMA-262, 21.4.1.1).
const FURTHEST: i128 = 8_640_000_000_000_000;

const DAY: i128 = 86_400_000;

/// The body of a timestamp extension as ISO text; none if it is no timestamp, or one that no `Date` can be.
pub(super) fn iso_text(body: &[u8]) -> Option<String> {
    let (seconds, nanoseconds) = timestamp(body)?;
    let milliseconds = i128::from(seconds) * 1000 + i128::from(nanoseconds / 1_000_000);
    if milliseconds.abs() > FURTHEST || nanoseconds >= 1_000_000_000 {
        return None;
    }
    let (days, rest) = (milliseconds.div_euclid(DAY), milliseconds.rem_euclid(DAY));
    let (year, month, day) = civil(days as i64);
    let (hour, minute, second) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    let year = match year {
        0..=9999 => format!("{year:04}"),
        _ => format!("{}{:06}", if year < 0 { '-' } else { '+' }, year.abs()),
    };
    Some(format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", rest % 1000))
}

/// Seconds since 1970 and nanoseconds, from the three lengths that the MessagePack specification gives.
fn timestamp(body: &[u8]) -> Option<(i64, u32)> {
    match body.len() {
        4 => Some((i64::from(u32::from_be_bytes(body.try_into().ok()?)), 0)),
        8 => {
            let packed = u64::from_be_bytes(body.try_into().ok()?);
            Some(((packed & 0x3_ffff_ffff) as i64, (packed >> 34) as u32))
        }
        12 => {
            let (nanoseconds, seconds) = body.split_at(4);
            let seconds = i64::from_be_bytes(seconds.try_into().ok()?);
            Some((seconds, u32::from_be_bytes(nanoseconds.try_into().ok()?)))
        }
        _ => None,
    }
}

/// Year, month and day of a number of days since 1970, in the proleptic Gregorian calendar. Years are counted from
/// March, so that the leap day is the last of its year; an era is the 400 years after which the calendar repeats.
fn civil(days: i64) -> (i64, i64, i64) {
    // Days from 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months from March on are 153 days, whichever five.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(seconds: i64, nanoseconds: u32) -> Option<String> {
        iso_text(&[&nanoseconds.to_be_bytes()[..], &seconds.to_be_bytes()].concat())
    }

    #[test]
    fn a_moment_has_the_text_that_javascript_gives_it() {
        // Each from `new Date(seconds * 1000 + ms).toISOString()`.
        for (seconds, ms, text) in [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, 7, "2000-02-29T00:00:00.007Z"),
            (951_868_799, 999, "2000-02-29T23:59:59.999Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000Z"),
            (-1, 500, "1969-12-31T23:59:59.500Z"),
            (-62_167_219_200, 0, "0000-01-01T00:00:00.000Z"),
            (-62_167_219_201, 0, "-000001-12-31T23:59:59.000Z"),
            (253_402_300_800, 0, "+010000-01-01T00:00:00.000Z"),
            (8_640_000_000_000, 0, "+275760-09-13T00:00:00.000Z"),
        ] {
            assert_eq!(of(seconds, ms * 1_000_000).as_deref(), Some(text));
        }
    }

    #[test]
    fn the_three_lengths_say_the_same() {
        let text = "2023-11-14T22:13:20.000Z";
        assert_eq!(iso_text(&1_700_000_000u32.to_be_bytes()).as_deref(), Some(text));
        assert_eq!(iso_text(&1_700_000_000u64.to_be_bytes()).as_deref(), Some(text));
        assert_eq!(of(1_700_000_000, 0).as_deref(), Some(text));
    }

    #[test]
    fn what_no_date_can_be_has_no_text() {
        assert_eq!(of(8_640_000_000_001, 0), None);
        assert_eq!(of(i64::MIN, 0), None);
        assert_eq!(of(0, 1_000_000_000), None);
        assert_eq!(iso_text(&[0; 5]), None);
    }
}
