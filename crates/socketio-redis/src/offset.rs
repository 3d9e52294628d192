//! Offsets: `digits-digits`, the milliseconds and a count within them, as Redis names the entries of a stream.

/// An offset as two numbers that compare; `None` for what is no offset.
pub fn parse_offset(offset: &str) -> Option<(u64, u64)> {
    let (ms, count) = offset.split_once('-')?;
    let number =
        |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?;
    Some((number(ms)?, number(count)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_two_numbers_and_nothing_else() {
        assert_eq!(parse_offset("1795490089305-12"), Some((1_795_490_089_305, 12)));
        for text in ["", "-", "1-", "-1", "1", "abc'; DROP", "1-+2", "1-2-3", "99999999999999999999-0"] {
            assert_eq!(parse_offset(text), None, "{text}");
        }
        assert!(parse_offset("9-10") > parse_offset("9-9") && parse_offset("10-0") > parse_offset("9-9"));
    }
}
