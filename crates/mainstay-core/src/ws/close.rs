//! Close codes (RFC 6455, section 7.4) and the Close frame.

use super::frame::{self, opcode};

/// The endpoint is going away: an idle tunnel, a balancer that stops.
pub const GOING_AWAY: u16 = 1001;
/// The peer broke the framing.
pub const PROTOCOL_ERROR: u16 = 1002;
/// A Close without a code was seen. Never on the wire.
pub const NO_STATUS: u16 = 1005;
/// The connection ended without a Close. Never on the wire.
pub const ABNORMAL: u16 = 1006;
/// A message was longer than allowed.
pub const TOO_BIG: u16 = 1009;
/// The service restarts; clients should come back.
pub const SERVICE_RESTART: u16 = 1012;

/// A whole Close frame; `reason` is cut to 123 bytes at a character boundary.
pub fn encode_close(code: u16, reason: &str, mask: Option<[u8; 4]>) -> Vec<u8> {
    let reason = &reason[..reason.floor_char_boundary(123)];
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    frame::encode_control(opcode::CLOSE, &payload, mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_to_a_client_is_plain_and_one_to_a_node_is_masked() {
        assert_eq!(encode_close(1012, "bye", None), [0x88, 5, 0x03, 0xf4, b'b', b'y', b'e']);
        let masked = encode_close(1001, "", Some([1, 2, 3, 4]));
        assert_eq!(masked, [0x88, 0x82, 1, 2, 3, 4, 0x03 ^ 1, 0xe9 ^ 2]);
    }

    #[test]
    fn a_long_reason_is_cut_between_two_characters() {
        let frame = encode_close(1001, &"ü".repeat(100), None);
        assert_eq!(frame.len(), 2 + 2 + 122);
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }
}
