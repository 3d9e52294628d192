//! The subject of a client's certificate as text: RFC 4514, in ASCII.
//!
//! The order is that of the RFC: the last part of the name first, as `CN=alice,O=Example,C=DE`. What could be taken
//! for the border of a part is escaped, and so is all that is not printable ASCII: a name that a certificate
//! authority has signed cannot look like another one.

use std::fmt::Write as _;

use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// The short names of RFC 4514 section 3; other attributes go by their numbers.
const SHORT: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
];

/// The subject of a certificate; empty when it has none, `None` when `der` is no certificate.
pub(crate) fn subject_of(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(name_text(certificate.subject()))
}

fn name_text(name: &X509Name<'_>) -> String {
    let parts: Vec<String> =
        name.iter_rdn().map(|part| part.iter().map(attribute_text).collect::<Vec<_>>().join("+")).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let short = SHORT.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
    match (short, attribute.as_str()) {
        (Some(short), Ok(value)) => format!("{short}={}", escape(value)),
        // A value whose form is not known is its bytes (RFC 4514 section 2.4).
        _ => format!("{}={}", short.unwrap_or(&oid), encode_hex(attribute)),
    }
}

/// RFC 4514 section 2.4, with every byte that is not printable ASCII as a hex pair, which the section allows.
fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    let last = value.len().saturating_sub(1);
    for (at, byte) in value.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' | b'=' => {
                text.push('\\');
                text.push(byte.into());
            }
            b'#' if at == 0 => text.push_str("\\#"),
            b' ' if at == 0 || at == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(byte.into()),
            _ => push_hex(&mut text, '\\', byte),
        }
    }
    text
}

/// `#`, and the value's encoding in hex.
fn encode_hex(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.attr_value();
    let mut text = String::from("#");
    // The tags of strings are below 31, so one byte; the length is in the definite form of DER.
    let mut bytes = vec![value.tag().0 as u8];
    let length = value.data.len();
    match length {
        0..=127 => bytes.push(length as u8),
        128..=255 => bytes.extend([0x81, length as u8]),
        _ => bytes.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    bytes.extend_from_slice(value.data);
    bytes.iter().for_each(|byte| {
        let _ = write!(text, "{byte:02x}");
    });
    text
}

fn push_hex(text: &mut String, mark: char, byte: u8) {
    text.push(mark);
    // Writing to a String does not fail.
    let _ = write!(text, "{byte:02X}");
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn of(parts: &[(DnType, &str)]) -> String {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        subject_of(certificate.der()).unwrap()
    }

    #[test]
    fn the_last_part_comes_first_and_a_border_cannot_be_faked() {
        let parts = [
            (DnType::CountryName, "DE"),
            (DnType::OrganizationName, "Example"),
            (DnType::CommonName, "alice"),
        ];
        assert_eq!(of(&parts), "CN=alice,O=Example,C=DE");
        assert_eq!(of(&[(DnType::CommonName, "a,CN=admin")]), "CN=a\\,CN\\=admin");
        assert_eq!(of(&[(DnType::CommonName, " #x+y; ")]), "CN=\\ #x\\+y\\;\\ ");
    }

    #[test]
    fn the_text_is_printable_ascii_whatever_the_name_is() {
        assert_eq!(of(&[(DnType::CommonName, "Jürgen\r\nX: y")]), "CN=J\\C3\\BCrgen\\0D\\0AX: y");
        assert_eq!(of(&[(DnType::CommonName, "#")]), "CN=\\#");
        assert_eq!(of(&[]), "");
    }

    #[test]
    fn an_attribute_without_a_short_name_goes_by_its_number_and_its_bytes() {
        let mail = DnType::CustomDnType(vec![1, 2, 840, 113549, 1, 9, 1]);
        assert_eq!(of(&[(mail, "a@b")]), "1.2.840.113549.1.9.1=#0c03614062");
    }

    #[test]
    fn what_is_no_certificate_has_no_subject() {
        assert_eq!(subject_of(b""), None);
        assert_eq!(subject_of(&[0x30; 300]), None);
    }
}
