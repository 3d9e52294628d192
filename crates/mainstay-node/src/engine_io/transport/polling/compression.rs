//! Polling answers of 1 KiB and more are compressed for clients that take it, as Node does.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING};
use http::{HeaderMap, HeaderValue};
use http_body_util::Full;

use crate::response::HttpResponse;

/// A shorter body is sent as it is.
const THRESHOLD: usize = 1024;

/// Puts `body` into `answer`, compressed when the request's headers ask for it.
pub(crate) fn set_body(answer: &mut HttpResponse, request: &HeaderMap, body: Bytes) {
    let coding = if body.len() < THRESHOLD { None } else { accepted_coding(request) };
    let Some(coding) = coding else {
        *answer.body_mut() = Full::new(body);
        return;
    };
    // Writing into memory does not fail; if it did, the plain body would be as right.
    match coding.encode(&body) {
        Ok(encoded) => {
            answer.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
            *answer.body_mut() = Full::new(encoded.into());
        }
        Err(_) => *answer.body_mut() = Full::new(body),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentCoding {
    Gzip,
    Deflate,
}

impl ContentCoding {
    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
        }
    }

    fn encode(self, body: &[u8]) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(body)?;
                encoder.finish()
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(body)?;
                encoder.finish()
            }
        }
    }
}

/// The first coding of ours that Accept-Encoding names without refusing it (RFC 9110, section 12.5.3).
fn accepted_coding(request: &HeaderMap) -> Option<ContentCoding> {
    let values = request.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).find_map(|item| {
        let (name, weight) = item.split_once(';').unwrap_or((item, ""));
        let is_refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.trim().parse() == Ok(0.0));
        match name.trim().to_ascii_lowercase().as_str() {
            "gzip" | "*" if !is_refused => Some(ContentCoding::Gzip),
            "deflate" if !is_refused => Some(ContentCoding::Deflate),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn request(accept: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accept))])
    }

    #[test]
    fn the_first_coding_that_is_not_refused_is_taken() {
        for (accept, coding) in [
            ("gzip, deflate, br", Some(ContentCoding::Gzip)),
            ("br, deflate;q=0.5", Some(ContentCoding::Deflate)),
            ("gzip;q=0, deflate", Some(ContentCoding::Deflate)),
            ("*", Some(ContentCoding::Gzip)),
            ("identity", None),
            ("", None),
        ] {
            assert_eq!(accepted_coding(&request(accept)), coding, "{accept}");
        }
        assert_eq!(accepted_coding(&HeaderMap::new()), None);
    }

    #[test]
    fn what_is_compressed_reads_back_and_a_short_body_stays() {
        let text = "42[\"big\"]".repeat(200);
        let encoded = ContentCoding::Gzip.encode(text.as_bytes()).unwrap();
        let mut read = String::new();
        flate2::read::GzDecoder::new(&encoded[..]).read_to_string(&mut read).unwrap();
        assert!(read == text && encoded.len() < 100);
        let mut answer = HttpResponse::new(Full::default());
        set_body(&mut answer, &request("gzip"), Bytes::from(vec![0; THRESHOLD - 1]));
        assert!(answer.headers().is_empty());
        set_body(&mut answer, &request("gzip"), Bytes::from(vec![0; THRESHOLD]));
        assert_eq!(answer.headers()[CONTENT_ENCODING], "gzip");
    }
}
