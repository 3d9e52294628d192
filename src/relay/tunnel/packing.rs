//! A tunnel as a parcel: what it is, what it is held to, where it stands; and back.
//!
//! A tunnel that is frozen is in its slab without its sockets. One that was read from a parcel has its times on a
//! clock that shows [`BEGINNING`], until a thread takes it and shifts them to its own.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::{CLIENT, End, Live, NODE, Pipe, Pulse, Record};
use crate::metrics::{OUTCOMES, SOURCES, Side};
use crate::relay::Why;
use crate::relay::parcel::field::{Fault, Fields, Tag};
use crate::relay::parcel::{self, Shared};
use crate::relay::turn::BEGINNING;

const ID: Tag = Tag(1, "id");
const CLIENT_ADDRESS: Tag = Tag(2, "client");
const POOL: Tag = Tag(3, "pool");
const NODE_NAME: Tag = Tag(4, "node");
const ROUTE: Tag = Tag(5, "route");
const GENERATION: Tag = Tag(6, "generation");
/// Nanoseconds since the Unix epoch.
const OPENED_AT: Tag = Tag(7, "opened at");
const SOURCE: Tag = Tag(8, "affinity source");
const OUTCOME: Tag = Tag(9, "affinity outcome");
const TRACE: Tag = Tag(10, "trace");
/// Absent when the connection is counted nowhere; empty when it is nobody's.
const PLACE: Tag = Tag(11, "place");
const MAX_MESSAGE: Tag = Tag(12, "most bytes of a message");
const IDLE: Tag = Tag(13, "idle time");
/// So long ago, in milliseconds, as the two behind it.
const ADOPTED: Tag = Tag(14, "adopted");
const ACTIVE: Tag = Tag(15, "active");
const MESSAGED: Tag = Tag(16, "messaged");
/// In so long, in milliseconds.
const DEADLINE: Tag = Tag(17, "deadline");
const CAUSE_SIDE: Tag = Tag(18, "who ends it");
const CAUSE_CODE: Tag = Tag(19, "its close code");
const CAUSE_WHY: Tag = Tag(20, "why it ends");
const PARTING: Tag = Tag(21, "parting");
const PULSE: Tag = Tag(22, "the pulse");
const CLIENT_END: Tag = Tag(23, "the client's end");
const NODE_END: Tag = Tag(24, "the node's end");
const FROM_CLIENT: Tag = Tag(25, "the client's direction");
const FROM_NODE: Tag = Tag(26, "the node's direction");
/// What a version that does not know it may leave behind: it would place the client by its key all the same.
const KEY: Tag = Tag(128, "key");
/// As above: that version waits longer for the other side of a half-ended tunnel, or not so long.
const CLOSE_TIME: Tag = Tag(129, "close time");

/// What versions that write no [`CLOSE_TIME`] are taken to mean. In milliseconds.
const USUAL_CLOSE_TIME: u32 = 10_000;

/// What a word of a label is that this version does not have.
const OTHER: &str = "other";

impl Live {
    /// Whether the sockets are away.
    pub fn is_frozen(&self) -> bool {
        self.ends.iter().any(|end| end.socket().is_none())
    }

    /// Why it cannot be frozen now, if it cannot.
    pub fn stays(&self) -> Option<&'static str> {
        let weight: usize = self.ends.iter().map(End::weight).sum();
        (weight > parcel::MOST / 2).then_some("too much waits for a slow reader")
    }

    /// The parcel of the tunnel as it is at `now`.
    pub fn pack(&self, now: u64) -> Zeroizing<Vec<u8>> {
        let mut writer = parcel::begin();
        self.record.pack(&mut writer);
        writer.number(MAX_MESSAGE, self.max_message);
        writer.number(IDLE, self.idle);
        writer.number(ADOPTED, now.saturating_sub(self.adopted));
        writer.number(ACTIVE, now.saturating_sub(self.active));
        writer.maybe(MESSAGED, (self.messaged != 0).then(|| now.saturating_sub(self.messaged)));
        writer.maybe(DEADLINE, (self.deadline != u64::MAX).then(|| self.deadline.saturating_sub(now)));
        if let Some((side, code, why)) = self.cause {
            writer.number(CAUSE_SIDE, side as u8);
            writer.number(CAUSE_CODE, code);
            writer.bytes(CAUSE_WHY, why.as_str().as_bytes());
        }
        writer.mark(PARTING, self.parting);
        writer.section(PULSE, |writer| self.pulse.pack(writer, now));
        writer.section(CLIENT_END, |writer| self.ends[CLIENT].pack(writer));
        writer.section(NODE_END, |writer| self.ends[NODE].pack(writer));
        writer.section(FROM_CLIENT, |writer| self.pipes[CLIENT].pack(writer));
        writer.section(FROM_NODE, |writer| self.pipes[NODE].pack(writer));
        writer.maybe(KEY, self.record.key);
        writer.number(CLOSE_TIME, self.close);
        writer.finish()
    }

    /// Reads what [`pack`](Self::pack) wrote. The sockets, the client's and the node's, are not touched.
    pub fn unpack<'a>(
        bytes: &'a [u8],
        sockets: [OwnedFd; 2],
        shared: &mut Shared<'a>,
    ) -> Result<Self, Fault> {
        let mut fields = parcel::open(bytes)?;
        let fields = &mut fields;
        let [client, node] = sockets;
        let before = |ago: u64| BEGINNING.saturating_sub(ago);
        let mut live = Self {
            record: Record::unpack(fields, shared)?,
            max_message: fields.number(MAX_MESSAGE)?,
            idle: fields.number(IDLE)?,
            close: USUAL_CLOSE_TIME,
            adopted: before(fields.number(ADOPTED)?),
            active: before(fields.number(ACTIVE)?),
            messaged: fields.maybe(MESSAGED)?.map_or(0, |ago| before(ago).max(1)),
            deadline: fields.maybe(DEADLINE)?.map_or(u64::MAX, |left| BEGINNING.saturating_add(left)),
            cause: cause(fields)?,
            parting: fields.mark(PARTING)?,
            pulse: Pulse::unpack(fields.section(PULSE)?, BEGINNING)?,
            ends: [
                End::unpack(fields.section(CLIENT_END)?, client)?,
                End::unpack(fields.section(NODE_END)?, node)?,
            ],
            pipes: [Pipe::unpack(fields.section(FROM_CLIENT)?)?, Pipe::unpack(fields.section(FROM_NODE)?)?],
            queued: false,
            was_lent: true,
        };
        live.record.key = fields.maybe(KEY)?;
        live.close = fields.maybe(CLOSE_TIME)?.unwrap_or(USUAL_CLOSE_TIME);
        fields.end()?;
        Ok(live)
    }

    /// The clock of the thread that takes it shows `now`.
    pub fn shift(&mut self, now: u64) {
        let by = now - BEGINNING;
        self.adopted += by;
        self.active += by;
        if self.messaged != 0 {
            self.messaged += by;
        }
        self.deadline = self.deadline.saturating_add(by);
        self.pulse.shift(by);
    }

    /// Takes the sockets away, the client's and the node's; `None` when they are away.
    pub fn take_sockets(&mut self) -> Option<[OwnedFd; 2]> {
        self.was_lent = true;
        let [client, node] = self.ends.each_mut().map(End::take_socket);
        Some([client?, node?])
    }

    /// Puts the sockets back.
    pub fn put_sockets(&mut self, sockets: [OwnedFd; 2]) {
        for (end, socket) in self.ends.iter_mut().zip(sockets) {
            end.put_socket(socket);
        }
    }
}

impl Record {
    fn pack(&self, writer: &mut parcel::field::Writer) {
        writer.number(ID, self.id);
        writer.bytes(CLIENT_ADDRESS, &octets(self.client));
        writer.bytes(POOL, self.seat.pool.as_bytes());
        writer.bytes(NODE_NAME, self.seat.node.as_bytes());
        writer.bytes(ROUTE, self.route.as_bytes());
        writer.number(GENERATION, self.generation);
        let since = self.opened_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        writer.number(OPENED_AT, u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        writer.bytes(SOURCE, self.affinity.0.as_bytes());
        writer.bytes(OUTCOME, self.affinity.1.as_bytes());
        writer.bytes(TRACE, &self.trace);
        if let Some(place) = &self.place {
            writer.bytes(PLACE, &place.client().map(octets).unwrap_or_default());
        }
    }

    fn unpack<'a>(fields: &mut Fields<'a>, shared: &mut Shared<'a>) -> Result<Self, Fault> {
        let id = fields.number(ID)?;
        let client = address(fields.bytes(CLIENT_ADDRESS)?).ok_or(fields.wrong(CLIENT_ADDRESS))?;
        let (pool, node) = (fields.text(POOL)?, fields.text(NODE_NAME)?);
        let route = shared.route(fields.text(ROUTE)?);
        let generation = fields.number(GENERATION)?;
        let opened_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(fields.number(OPENED_AT)?));
        let opened_at = opened_at.ok_or(fields.wrong(OPENED_AT))?;
        let affinity = (word(&SOURCES, fields.text(SOURCE)?), word(&OUTCOMES, fields.text(OUTCOME)?));
        let trace = *fields.exact(TRACE)?;
        let place = match fields.find(PLACE)? {
            None => None,
            Some([]) => shared.place(None),
            Some(bytes) => shared.place(Some(address(bytes).ok_or(fields.wrong(PLACE))?)),
        };
        let seat = shared.seat(pool, node);
        Ok(Self { id, client, seat, route, generation, opened_at, affinity, key: None, trace, place })
    }
}

/// Who began the end, with which code, and why.
fn cause(fields: &mut Fields<'_>) -> Result<Option<(Side, u16, Why)>, Fault> {
    let Some(side) = fields.maybe::<u8>(CAUSE_SIDE)? else { return Ok(None) };
    let side = Side::ALL.get(usize::from(side)).copied().ok_or(fields.wrong(CAUSE_SIDE))?;
    let code = fields.number(CAUSE_CODE)?;
    let why = Why::named(fields.text(CAUSE_WHY)?);
    Ok(Some((side, code, why)))
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    four.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())
}

/// A word of a label, as long as this version has it.
fn word(known: &[&'static str], word: &str) -> &'static str {
    known.iter().find(|known| **known == word).unwrap_or(&OTHER)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, Shutdown};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::Metrics;
    use crate::net::places::Places;
    use crate::net::tls::departed::{Departed, Keys, Suite, Version};
    use crate::relay::farewell::Farewell;
    use crate::relay::parcel::Counts;
    use crate::relay::pipe::HEADROOM;
    use crate::relay::tls::Role;
    use crate::relay::tls::tests::{meet, suites};
    use crate::relay::turn::{Progress, Turn};
    use crate::relay::{Rules, Tunnel};
    use crate::ws::{close, frame};

    /// A tunnel whose turns the test takes.
    struct Bench {
        metrics: Arc<Metrics>,
        places: Arc<Places>,
        live: Live,
        client: UnixStream,
        node: UnixStream,
        now: u64,
        scratch: Vec<u8>,
    }

    fn pair() -> (OwnedFd, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.set_nonblocking(true).unwrap();
        (ours.into(), theirs)
    }

    impl Bench {
        /// With TLS at both ends, of the suite of this number, if there is one.
        fn new(suite: Option<usize>, place: Option<Option<IpAddr>>) -> Self {
            Self::with(|role| suite.map(|suite| meet(suites()[suite], role).1), place)
        }

        fn with(tls: impl Fn(Role) -> Option<Departed>, place: Option<Option<IpAddr>>) -> Self {
            let (metrics, places) = (Metrics::new(1), Arc::<Places>::default());
            let ((client, client_peer), (node, node_peer)) = (pair(), pair());
            let record = Record {
                id: u64::MAX,
                client: "2001:db8::1".parse().unwrap(),
                seat: metrics.node("chat", "ws1").seat(),
                route: Arc::from("/"),
                generation: 7,
                opened_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789),
                affinity: ("engine_io", "moved"),
                key: None,
                trace: *b"0123456789abcdef",
                place: place.map(|client| {
                    let mut place = places.take(u32::MAX).unwrap();
                    assert!(client.is_none_or(|client| place.claim(client, 0)));
                    place
                }),
            };
            let tunnel = Tunnel {
                client,
                node,
                client_tls: tls(Role::Server),
                node_tls: tls(Role::Client),
                from_client: Bytes::new(),
                from_node: Bytes::new(),
                rules: Rules {
                    idle: HOUR,
                    max_message: 100_000,
                    ping: Some(Duration::from_secs(9)),
                    close: Duration::from_secs(10),
                },
                record,
            };
            let now = BEGINNING + 5;
            let live = Live::new(tunnel, now).unwrap().0;
            let scratch = vec![0; HEADROOM + 4096];
            Self { metrics, places, live, client: client_peer, node: node_peer, now, scratch }
        }

        fn turn(&mut self, visit: impl FnOnce(&mut Live, &mut Turn<'_>) -> Progress) -> Progress {
            self.live.end(CLIENT).wake(true, true, false);
            self.live.end(NODE).wake(true, true, false);
            let mut turn = Turn { scratch: &mut self.scratch, thread: 0, now: self.now, mask: [1, 2, 3, 4] };
            visit(&mut self.live, &mut turn)
        }

        fn unpack(&self, bytes: &[u8]) -> Result<Live, Fault> {
            let mut shared = Shared::new(Counts { metrics: &self.metrics, places: &self.places });
            Live::unpack(bytes, [pair().0, pair().0], &mut shared)
        }

        /// What has come to a peer.
        fn heard(peer: &mut UnixStream) -> Vec<u8> {
            let mut heard = Vec::new();
            // That there is no more now is no fault.
            let _ = peer.read_to_end(&mut heard);
            heard
        }

        /// The tunnel goes over to another process, where the clock shows something else.
        fn move_on(&mut self, now: u64) {
            let bytes = self.live.pack(self.now);
            let sockets = self.live.take_sockets().unwrap();
            assert!(self.live.is_frozen());
            let mut shared = Shared::new(Counts { metrics: &self.metrics, places: &self.places });
            let mut live = Live::unpack(&bytes, sockets, &mut shared).unwrap();
            live.shift(now);
            (self.live, self.now) = (live, now);
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[derive(Debug, Clone)]
    enum Act {
        Say { from_client: bool, bytes: Vec<u8> },
        Hear { client: bool },
        Wait(u64),
        Close,
        Shut { client: bool },
        Move(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        let message = (any::<bool>(), 0usize..4000).prop_map(|(whole, len)| {
            let frame = [&[0x82, 126][..], &(len as u16).to_be_bytes(), &vec![5; len]].concat();
            if whole { frame } else { frame[..frame.len() * 2 / 3].to_vec() }
        });
        let control = any::<u8>().prop_map(|it| frame::control(0x88 + it % 3, &[3, 0xe8], None));
        let bytes = prop_oneof![6 => message, 1 => control, 1 => prop::collection::vec(any::<u8>(), 0..30)];
        prop_oneof![
            6 => (any::<bool>(), bytes).prop_map(|(from_client, bytes)| Act::Say { from_client, bytes }),
            2 => any::<bool>().prop_map(|client| Act::Hear { client }),
            2 => (0u64..20_000).prop_map(Act::Wait),
            1 => Just(Act::Close),
            1 => any::<bool>().prop_map(|client| Act::Shut { client }),
            2 => (0u64..1 << 50).prop_map(|ahead| Act::Move(BEGINNING + ahead)),
        ]
    }

    impl Bench {
        fn play(&mut self, act: &Act) {
            match act {
                Act::Say { from_client, bytes } => {
                    let peer = if *from_client { &mut self.client } else { &mut self.node };
                    // With TLS it is garbage, and that is a state, too. A full socket takes less.
                    let _ = peer.write(bytes);
                }
                Act::Hear { client } => {
                    Self::heard(if *client { &mut self.client } else { &mut self.node });
                }
                Act::Wait(time) => self.now += time,
                Act::Close => {
                    let farewell = Farewell { code: 1012, reason: "bye", why: Why::Drained, grace: 9_000 };
                    self.turn(|live, turn| {
                        live.farewell(&farewell, turn);
                        Progress::Rests
                    });
                }
                Act::Shut { client } => {
                    let peer = if *client { &self.client } else { &self.node };
                    // It may be shut already.
                    let _ = peer.shutdown(Shutdown::Write);
                }
                Act::Move(now) => self.move_on(*now),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn a_tunnel_is_the_same_behind_its_parcel(
            suite in prop::option::weighted(0.3, 0..6usize),
            place in prop::option::of(prop::option::of(any::<u32>().prop_map(|it| IpAddr::V4(it.into())))),
            acts in prop::collection::vec(act(), 0..30),
        ) {
            let mut bench = Bench::new(suite, place);
            for act in &acts {
                bench.play(act);
                let progress = bench.turn(|live, turn| match live.turn(turn) {
                    Progress::Over => Progress::Over,
                    _ => live.sweep(turn),
                });
                if progress == Progress::Over {
                    break;
                }
            }
            let bytes = bench.live.pack(bench.now);
            let again = bench.unpack(&bytes).unwrap();
            prop_assert_eq!(&*again.pack(BEGINNING), &*bytes);
            let wall = SystemTime::UNIX_EPOCH + 3 * HOUR;
            prop_assert_eq!(again.snapshot(BEGINNING, wall), bench.live.snapshot(bench.now, wall));
            prop_assert_eq!(again.outcome(BEGINNING), bench.live.outcome(bench.now));
        }

        #[test]
        fn bytes_that_are_no_parcel_are_a_fault_and_no_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..600), is_headed: bool,
        ) {
            let bench = Bench::new(None, None);
            let head = if is_headed { &b"MSTN\0\x01"[..] } else { b"" };
            prop_assert!(bench.unpack(&[head, &bytes].concat()).is_err());
        }

        #[test]
        fn a_parcel_that_is_changed_anywhere_makes_no_panic(
            suite in prop::option::of(0..6usize), cut in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), truncate: bool,
        ) {
            let bench = Bench::new(suite, Some(None));
            let mut bytes = bench.live.pack(bench.now).to_vec();
            for (at, byte) in &changes {
                *at.get_mut(&mut bytes) = *byte;
            }
            if truncate {
                bytes.truncate(cut.index(bytes.len()));
                prop_assert!(bench.unpack(&bytes).is_err());
            } else if let Ok(mut live) = bench.unpack(&bytes) {
                live.shift(BEGINNING + 99);
                live.snapshot(BEGINNING + 99, SystemTime::now());
                live.outcome(BEGINNING + 99);
                live.pack(BEGINNING + 99);
            }
        }
    }

    #[test]
    fn a_ping_that_waits_for_the_end_of_a_frame_travels_and_its_pong_is_known() {
        let mut bench = Bench::new(None, None);
        let message = [&[0x82, 126, 0, 200][..], &[5; 200]].concat();
        bench.node.write_all(&message[..100]).unwrap();
        bench.turn(Live::turn);
        bench.now += 9_500;
        bench.turn(|live, turn| live.sweep(turn));
        bench.move_on(BEGINNING);
        bench.node.write_all(&message[100..]).unwrap();
        bench.turn(Live::turn);
        let heard = Bench::heard(&mut bench.client);
        let (passed, ping) = heard.split_at(message.len());
        assert_eq!((passed, ping.len(), ping[0]), (&message[..], 10, 0x89));
        bench.move_on(BEGINNING + 77);
        bench.now += 40;
        let pong = frame::control(frame::opcode::PONG, &ping[2..], Some([1; 4]));
        bench.client.write_all(&pong).unwrap();
        bench.turn(Live::turn);
        assert_eq!(Bench::heard(&mut bench.node), b"", "it is the balancer's own");
        let round_trip = bench.live.snapshot(bench.now, SystemTime::UNIX_EPOCH).round_trip;
        assert_eq!(round_trip, Some(Duration::from_millis(40)));
    }

    #[test]
    fn the_deadline_of_a_close_travels_as_what_is_left_of_it() {
        let mut bench = Bench::new(None, None);
        let farewell = Farewell { code: 1012, reason: "bye", why: Why::Drained, grace: 5_000 };
        bench.turn(|live, turn| {
            live.farewell(&farewell, turn);
            live.turn(turn)
        });
        bench.now += 3_000;
        bench.move_on(BEGINNING + (1 << 45));
        bench.now += 1_999;
        assert_eq!(bench.turn(|live, turn| live.sweep(turn)), Progress::Rests);
        bench.now += 1;
        assert_eq!(bench.turn(|live, turn| live.sweep(turn)), Progress::Over);
        let outcome = bench.live.outcome(bench.now);
        assert_eq!((outcome.code, outcome.why, outcome.duration), (1012, Why::Drained, 5 * SECOND));
        assert_eq!(Bench::heard(&mut bench.client), close::close_frame(1012, "bye", None));
    }

    #[test]
    fn the_deadline_of_a_half_ended_tunnel_travels_and_one_that_had_none_gets_one() {
        let mut bench = Bench::new(None, None);
        bench.client.shutdown(Shutdown::Write).unwrap();
        bench.turn(Live::turn);
        // A version that knows no such deadline hands it over; this one sees to it with its first sweep.
        bench.now += 60_000;
        bench.move_on(BEGINNING + (1 << 45));
        assert_eq!(bench.turn(|live, turn| live.sweep(turn)), Progress::Rests);
        bench.now += 4_000;
        assert_eq!(bench.turn(|live, turn| live.sweep(turn)), Progress::Rests);
        bench.move_on(BEGINNING + 7);
        bench.now += 5_999;
        assert_eq!(bench.turn(|live, turn| live.sweep(turn)), Progress::Rests);
        bench.now += 1;
        assert_eq!(bench.turn(|live, turn| live.sweep(turn)), Progress::Over);
        let outcome = bench.live.outcome(bench.now);
        assert_eq!((outcome.side, outcome.code, outcome.why), (Side::Client, 1006, Why::CloseTimeout));
    }

    #[test]
    fn the_message_under_way_travels_and_one_that_has_ended_does_not() {
        let mut bench = Bench::new(None, None);
        let fragment = |first| [&[first, 126][..], &40_000u16.to_be_bytes(), &vec![0; 40_000]].concat();
        let say = |bench: &mut Bench, first| {
            let (mut message, mut heard) = (&fragment(first)[..], 0);
            while !message.is_empty() || heard < 40_004 {
                // A full socket takes less.
                let taken = bench.node.write(message).unwrap_or(0);
                message = &message[taken..];
                bench.turn(Live::turn);
                let more = Bench::heard(&mut bench.client);
                if more.first() == Some(&0x88) {
                    return false;
                }
                heard += more.len();
            }
            true
        };
        // The limit is 100,000.
        for first in [0x82, 0x02] {
            assert!(say(&mut bench, first));
            bench.move_on(BEGINNING + 1);
        }
        assert!(say(&mut bench, 0x00));
        bench.move_on(BEGINNING + 1);
        assert!(!say(&mut bench, 0x80), "the message that began before both moves is too long");
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// A tunnel with something in every field of the form.
    fn eventful() -> Bench {
        let keys =
            |seed| Box::new(Keys { secret: [seed; 48], key: [seed + 1; 32], iv: [seed + 2; 12], seq: 40 });
        let departed = |role| {
            let (version, suite) = match role {
                Role::Server => (Version::Tls13, Suite::Aes256Gcm),
                Role::Client => (Version::Tls12, Suite::Chacha20Poly1305),
            };
            let (undecrypted, unsent) = (vec![23, 3, 3, 0, 60, 1, 2, 3], vec![]);
            let (tx, rx, plain, is_closed) = (keys(1), keys(101), vec![], false);
            Some(Departed { version, suite, tx, rx, undecrypted, unsent, plain, is_closed })
        };
        let mut bench = Bench::with(departed, Some(Some("192.0.2.7".parse().unwrap())));
        bench.turn(|live, turn| {
            // In a frame of the node's, and in a header of the client's.
            live.pass_early(
                &[(Bytes::from_static(&[0x82, 0xfe, 1]), Bytes::new()), (NODE_SAYS, Bytes::new())],
                turn,
            );
            live.farewell(&Farewell { code: 1012, reason: "moved", why: Why::Drained, grace: 5_000 }, turn);
            live.turn(turn)
        });
        bench.live.end(NODE).fall_silent();
        bench.now += 1_234;
        bench
    }

    const NODE_SAYS: Bytes = Bytes::from_static(&[0x81, 5, b'h', b'e']);

    /// As the first build wrote it: those that are to come must read it as long as the version is 1.
    const FIRST: &str = include_str!("parcel-1.hex");
    /// With the close time and the message under way. When a field is added, this stays, and another one follows it.
    const SECOND_FORM: &str = include_str!("parcel-1-close.hex");

    fn parcel(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn what_an_earlier_build_has_written_is_still_read() {
        let bench = eventful();
        for earlier in [FIRST, SECOND_FORM] {
            let earlier = parcel(earlier);
            let read = bench.unpack(&earlier).unwrap();
            let wall = SystemTime::UNIX_EPOCH + 3 * HOUR;
            assert_eq!(read.snapshot(BEGINNING, wall), bench.live.snapshot(bench.now, wall));
            assert_eq!(read.outcome(BEGINNING), bench.live.outcome(bench.now));
        }
        let now: String = bench.live.pack(bench.now).iter().map(|byte| format!("{byte:02x}")).collect();
        let last: String = SECOND_FORM.split_whitespace().collect();
        assert_eq!(now, last);
    }

    #[test]
    fn a_word_that_only_another_version_knows_stops_no_tunnel() {
        assert_eq!(word(&SOURCES, "header"), "header");
        assert_eq!(word(&SOURCES, "the stars"), "other");
        assert_eq!((Why::named("idle"), Why::named("boredom")), (Why::Idle, Why::Broken));
        assert!(Why::ALL.into_iter().all(|why| Why::named(why.as_str()) == why));
    }

    #[test]
    fn an_address_is_4_or_16_bytes() {
        for known in [IpAddr::V4(Ipv4Addr::LOCALHOST), "2001:db8::1".parse().unwrap()] {
            assert_eq!(address(&octets(known)), Some(known));
        }
        assert_eq!((address(&[]), address(&[1; 5])), (None, None));
    }
}
