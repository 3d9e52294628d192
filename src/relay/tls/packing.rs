//! A TLS connection as fields of a parcel: both directions' keys, what was received and not opened, and how far the
//! conversation beside the data has come.

use super::alert::Fault as Broken;
use super::record::{Cipher, Direction};
use super::{Heard, Role, Said, Side};
use crate::net::tls::departed::{Suite, Version};
use crate::relay::parcel::field::{Fault, Fields, Tag, Writer};

const VERSION: Tag = Tag(1, "version");
const SUITE: Tag = Tag(2, "suite");
const ROLE: Tag = Tag(3, "role");
const TX: Tag = Tag(4, "the keys that TLS sends with");
const RX: Tag = Tag(5, "the keys that TLS receives with");
const BEGUN: Tag = Tag(6, "begun");
const IS_BEHIND: Tag = Tag(7, "is behind");
const HEARD: Tag = Tag(8, "heard");
const LAST_WORD: Tag = Tag(9, "last word");
const OWES_UPDATE: Tag = Tag(10, "owes an update");
const HAS_RENEGOTIATED: Tag = Tag(11, "has renegotiated");
const UPDATES: Tag = Tag(12, "updates");
const EMPTIES: Tag = Tag(13, "empties");
const WARNINGS: Tag = Tag(14, "warnings");

/// By the numbers that they have in a parcel, as the three below: the order stays, and new ones come last.
const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];
const SUITES: [Suite; 3] = [Suite::Aes128Gcm, Suite::Aes256Gcm, Suite::Chacha20Poly1305];
const ROLES: [Role; 2] = [Role::Server, Role::Client];
const HEARDS: [Heard; 9] = [
    Heard::Open,
    Heard::Goodbye,
    Heard::Cut,
    Heard::Fault(Broken::BadRecord),
    Heard::Fault(Broken::NotTls),
    Heard::Fault(Broken::Unexpected),
    Heard::Fault(Broken::TooLong),
    Heard::Fault(Broken::IllegalValue),
    Heard::Fault(Broken::Alerted),
];

impl Side {
    /// Writes the connection down. It holds live keys from then on: see [`parcel`](crate::relay::parcel).
    pub fn pack(&self, writer: &mut Writer) {
        writer.number(VERSION, number(&VERSIONS, &self.cipher.version));
        writer.number(SUITE, number(&SUITES, &self.cipher.suite));
        writer.number(ROLE, number(&ROLES, &self.role));
        writer.section(TX, |writer| self.tx.pack(writer));
        writer.section(RX, |writer| self.rx.pack(writer));
        writer.bytes(BEGUN, &self.begun);
        writer.mark(IS_BEHIND, self.is_behind);
        writer.number(HEARD, number(&HEARDS, &self.heard));
        writer.mark(LAST_WORD, self.said == Said::LastWord);
        writer.mark(OWES_UPDATE, self.owes_update);
        writer.mark(HAS_RENEGOTIATED, self.has_renegotiated);
        writer.number(UPDATES, self.updates);
        writer.number(EMPTIES, self.empties);
        writer.number(WARNINGS, self.warnings);
    }

    /// Reads what [`pack`](Self::pack) wrote.
    pub fn unpack(mut fields: Fields<'_>) -> Result<Box<Self>, Fault> {
        let version = fields.one_of(VERSION, &VERSIONS)?;
        let cipher = Cipher { version, suite: fields.one_of(SUITE, &SUITES)? };
        let mut side = Box::new(Self::blank(cipher, fields.one_of(ROLE, &ROLES)?));
        side.tx.fill(fields.section(TX)?)?;
        side.rx.fill(fields.section(RX)?)?;
        side.begun = fields.bytes(BEGUN)?.to_vec();
        side.is_behind = fields.mark(IS_BEHIND)?;
        side.heard = fields.one_of(HEARD, &HEARDS)?;
        side.said = if fields.mark(LAST_WORD)? { Said::LastWord } else { Said::Open };
        side.owes_update = fields.mark(OWES_UPDATE)?;
        side.has_renegotiated = fields.mark(HAS_RENEGOTIATED)?;
        side.updates = fields.number(UPDATES)?;
        side.empties = fields.number(EMPTIES)?;
        side.warnings = fields.number(WARNINGS)?;
        fields.end()?;
        Ok(side)
    }

    /// Without keys, and nothing has happened on it.
    pub(super) fn blank(cipher: Cipher, role: Role) -> Self {
        let (tx, rx) = (Direction::blank(), Direction::blank());
        Self {
            cipher,
            role,
            tx,
            rx,
            limit: cipher.limit(),
            begun: Vec::new(),
            is_behind: false,
            heard: Heard::Open,
            said: Said::Open,
            owes_update: false,
            has_renegotiated: false,
            updates: 0,
            empties: 0,
            warnings: 0,
        }
    }

    /// Bytes that make the parcel longer than that of a connection at rest.
    pub fn weight(&self) -> usize {
        self.begun.len()
    }
}

/// The place of `it`, which is among `all`.
fn number<T: PartialEq>(all: &[T], it: &T) -> u64 {
    all.iter().position(|known| known == it).expect("all there are have a number") as u64
}
