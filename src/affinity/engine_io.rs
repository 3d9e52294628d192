//! Socket.IO session ids: tag the sid of a polling handshake, strip the tag on the way in.
