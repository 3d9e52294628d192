//! WebSocket framing (RFC 6455) without payload.
