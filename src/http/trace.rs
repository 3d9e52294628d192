//! W3C Trace Context: the `traceparent` of a request passes unchanged, and a request without one gets a new one.
//!
//! The balancer is no span of its own: it ensures that there is a trace, and that its access log and the node's spans
//! name the same one. A `traceparent` that is malformed or doubled is replaced, and `tracestate` is dropped with it,
//! since that belongs to no trace then (Trace Context, section 3.3). A new one has version 00 and the flag `sampled`: with
//! the usual parent-based samplers, "not sampled" would turn off the tracing of every node.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Names the trace and its caller (Trace Context, section 3.2).
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What tracing systems add to it (section 3.3).
pub(crate) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of randomness that a new `traceparent` takes: a trace-id and a parent-id.
pub(crate) const RANDOM_BYTES: usize = 24;

/// Ensures that the request has a valid `traceparent`, and gives its trace-id. `random` is called for a new one.
pub(crate) fn ensure_traceparent(
    headers: &mut HeaderMap,
    random: impl FnOnce() -> [u8; RANDOM_BYTES],
) -> [u8; 16] {
    let mut carried = headers.get_all(TRACEPARENT).iter();
    if let (Some(only), None) = (carried.next(), carried.next())
        && let Some(trace) = trace_id(only.as_bytes())
    {
        return trace;
    }
    let (trace, parent) = new_ids(random());
    let text = format!("00-{:032x}-{:016x}-01", u128::from_be_bytes(trace), u64::from_be_bytes(parent));
    let value = HeaderValue::try_from(text).expect("hexadecimal digits and hyphens are visible ASCII");
    headers.insert(TRACEPARENT, value);
    headers.remove(TRACESTATE);
    trace
}

/// A trace-id and a parent-id; all zeros, which no id is, become a one.
fn new_ids(random: [u8; RANDOM_BYTES]) -> ([u8; 16], [u8; 8]) {
    let (mut trace, mut parent) = ([0; 16], [0; 8]);
    trace.copy_from_slice(&random[..16]);
    parent.copy_from_slice(&random[16..]);
    trace[15] |= u8::from(trace == [0; 16]);
    parent[7] |= u8::from(parent == [0; 8]);
    (trace, parent)
}

/// The trace-id of a valid value: `VERSION-TRACE-PARENT-FLAGS` in lower-case hexadecimal digits, ids not all zeros.
/// A version after 00 may have more behind a hyphen; ff is invalid (sections 3.2.2 and 4.3).
fn trace_id(value: &[u8]) -> Option<[u8; 16]> {
    let (known, more) = value.split_at_checked(55)?;
    let [a, b, b'-', rest @ ..] = known else { return None };
    let [version] = bytes(&[*a, *b])?;
    let may_say_more = version != 0 && more.first() == Some(&b'-');
    if version == 0xff || !(more.is_empty() || may_say_more) || rest[32] != b'-' || rest[49] != b'-' {
        return None;
    }
    let trace: [u8; 16] = bytes(&rest[..32])?;
    let parent: [u8; 8] = bytes(&rest[33..49])?;
    let _flags: [u8; 1] = bytes(&rest[50..])?;
    (trace != [0; 16] && parent != [0; 8]).then_some(trace)
}

fn bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of the specification.
    const SOUND: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;

    fn headers(parents: &[&str]) -> HeaderMap {
        let parents = parents.iter().map(|parent| (TRACEPARENT, parent.parse().unwrap()));
        parents.chain([(TRACESTATE, "rojo=1".parse().unwrap())]).collect()
    }

    fn carried(headers: &mut HeaderMap) -> u128 {
        u128::from_be_bytes(ensure_traceparent(headers, || [7; RANDOM_BYTES]))
    }

    #[test]
    fn a_sound_traceparent_passes_unchanged_with_its_tracestate() {
        let future = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-what the future brings";
        for sound in [SOUND, &SOUND.replace("-01", "-00"), &SOUND.replace("-01", "-ff"), future] {
            let mut headers = headers(&[sound]);
            assert_eq!(carried(&mut headers), TRACE, "{sound}");
            assert_eq!(headers[TRACEPARENT], sound);
            assert_eq!(headers[TRACESTATE], "rojo=1");
        }
    }

    #[test]
    fn what_is_wrong_or_doubled_or_missing_is_replaced_and_its_tracestate_goes() {
        let made = "00-07070707070707070707070707070707-0707070707070707-01";
        let zero_trace = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let zero_parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01";
        for wrong in [
            "",
            "00",
            zero_trace,
            zero_parent,
            &SOUND.to_uppercase(),
            &SOUND.replace("00-4", "ff-4"),
            &SOUND.replace("00-4", "0g-4"),
            &SOUND.replace("36-00", "36_00"),
            &SOUND.replace("-01", "-0x"),
            &SOUND.replace("-01", "-1"),
            &format!("{SOUND}-more"),
            &format!("{SOUND} "),
            &SOUND.replace("00-4", "01-4").replace("-01", "-01more"),
            &SOUND[1..],
        ] {
            let mut headers = headers(&[wrong]);
            assert_eq!(carried(&mut headers), u128::from_be_bytes([7; 16]), "{wrong:?}");
            assert_eq!(headers[TRACEPARENT], made);
            assert!(!headers.contains_key(TRACESTATE), "{wrong:?}");
        }
        for parents in [&[][..], &[SOUND, SOUND]] {
            let mut headers = headers(parents);
            carried(&mut headers);
            assert_eq!(headers.get_all(TRACEPARENT).iter().collect::<Vec<_>>(), [made]);
        }
    }

    #[test]
    fn randomness_that_is_all_zeros_makes_ids_all_the_same() {
        let mut headers = HeaderMap::new();
        ensure_traceparent(&mut headers, || [0; RANDOM_BYTES]);
        assert_eq!(headers[TRACEPARENT], "00-00000000000000000000000000000001-0000000000000001-01");
    }

    proptest! {
        #[test]
        fn whatever_comes_in_a_sound_one_goes_out(value in "[0-9a-f-]{0,60}|[ -~]{0,60}", random in any::<[u8; 24]>()) {
            let mut headers = headers(&[&value]);
            let trace = ensure_traceparent(&mut headers, || random);
            prop_assert_eq!(trace_id(headers[TRACEPARENT].as_bytes()), Some(trace));
        }
    }
}
