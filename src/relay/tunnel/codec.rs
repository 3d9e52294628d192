//! A tunnel as a [tunnel state](tunnel_state): encoding and decoding.
//!
//! A frozen tunnel stays in its slab without its sockets. A decoded one has its times on a clock that shows
//! [`CLOCK_ORIGIN`], until a thread takes it and shifts them to its own.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use super::{ActiveTunnel, CLIENT, CloseCause, NODE};
use crate::metrics::{AFFINITY_OUTCOMES, AFFINITY_SOURCES, CloseSide};
use crate::relay::close_reason::CloseReason;
use crate::relay::endpoint::Endpoint;
use crate::relay::keepalive::Keepalive;
use crate::relay::pipe::Pipe;
use crate::relay::session::{HashKey, SessionInfo};
use crate::relay::tick::CLOCK_ORIGIN;
use crate::relay::tunnel_state::field::{FieldReader, FieldTag, FieldWriter};
use crate::relay::tunnel_state::{self, BatchCache, TunnelStateError};

const ID: FieldTag = FieldTag(1, "id");
const CLIENT_ADDRESS: FieldTag = FieldTag(2, "client");
const POOL: FieldTag = FieldTag(3, "pool");
const NODE_NAME: FieldTag = FieldTag(4, "node");
const ROUTE: FieldTag = FieldTag(5, "route");
const GENERATION: FieldTag = FieldTag(6, "generation");
/// Nanoseconds since the Unix epoch.
const OPENED_AT: FieldTag = FieldTag(7, "opened at");
const SOURCE: FieldTag = FieldTag(8, "affinity source");
const OUTCOME: FieldTag = FieldTag(9, "affinity outcome");
const TRACE: FieldTag = FieldTag(10, "trace");
/// Absent when the connection is not counted; empty when it is counted for no client.
const PERMIT: FieldTag = FieldTag(11, "permit");
const MAX_MESSAGE: FieldTag = FieldTag(12, "max message size");
const IDLE: FieldTag = FieldTag(13, "idle timeout");
/// How long ago, in milliseconds, as the next two.
const ADOPTED: FieldTag = FieldTag(14, "adopted");
const LAST_ACTIVE: FieldTag = FieldTag(15, "last active");
const LAST_MESSAGE: FieldTag = FieldTag(16, "last message");
/// In how long, in milliseconds.
const DEADLINE: FieldTag = FieldTag(17, "deadline");
const CAUSE_SIDE: FieldTag = FieldTag(18, "side of the cause");
const CAUSE_CODE: FieldTag = FieldTag(19, "close code of the cause");
const CAUSE_REASON: FieldTag = FieldTag(20, "reason of the cause");
const CLOSE_SENT: FieldTag = FieldTag(21, "close sent");
const KEEPALIVE: FieldTag = FieldTag(22, "the keepalive");
const CLIENT_ENDPOINT: FieldTag = FieldTag(23, "the client's endpoint");
const NODE_ENDPOINT: FieldTag = FieldTag(24, "the node's endpoint");
const FROM_CLIENT: FieldTag = FieldTag(25, "the client's direction");
const FROM_NODE: FieldTag = FieldTag(26, "the node's direction");
/// Optional: a version that does not know it selects the node by the client's key all the same.
const KEY: FieldTag = FieldTag(128, "key");
/// Optional: a version that does not know it gives the other side of a half-ended tunnel another time.
const CLOSE_TIMEOUT: FieldTag = FieldTag(129, "close timeout");

/// The close timeout where none is written. In milliseconds.
const DEFAULT_CLOSE_TIMEOUT: u32 = 10_000;

/// The label for one that this version does not know.
const UNKNOWN_LABEL: &str = "other";

impl ActiveTunnel {
    /// Whether it is frozen: its sockets are away.
    pub(crate) fn is_frozen(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.socket().is_none())
    }

    /// Whether it can be frozen now: it is not frozen, and does not hold too much for a slow reader.
    pub(crate) fn can_freeze(&self) -> bool {
        let extra: usize = self.endpoints.iter().map(Endpoint::extra_state_len).sum();
        !self.is_frozen() && extra <= tunnel_state::MAX_SIZE / 2
    }

    /// The state of the tunnel at `now`.
    pub(crate) fn encode(&self, now: u64) -> Zeroizing<Vec<u8>> {
        let mut writer = tunnel_state::start_state();
        self.info.encode(&mut writer);
        writer.number(MAX_MESSAGE, self.max_message_size);
        writer.number(IDLE, self.idle_timeout);
        writer.number(ADOPTED, now.saturating_sub(self.adopted_at));
        writer.number(LAST_ACTIVE, now.saturating_sub(self.last_active));
        writer
            .optional(LAST_MESSAGE, (self.last_message != 0).then(|| now.saturating_sub(self.last_message)));
        writer.optional(DEADLINE, (self.deadline != u64::MAX).then(|| self.deadline.saturating_sub(now)));
        if let Some(CloseCause { side, code, reason }) = self.cause {
            writer.number(CAUSE_SIDE, side as u8);
            writer.number(CAUSE_CODE, code);
            writer.bytes(CAUSE_REASON, reason.as_str().as_bytes());
        }
        writer.flag(CLOSE_SENT, self.is_close_sent);
        writer.section(KEEPALIVE, |writer| self.keepalive.encode(writer, now));
        writer.section(CLIENT_ENDPOINT, |writer| self.endpoints[CLIENT].encode(writer));
        writer.section(NODE_ENDPOINT, |writer| self.endpoints[NODE].encode(writer));
        writer.section(FROM_CLIENT, |writer| self.pipes[CLIENT].encode(writer));
        writer.section(FROM_NODE, |writer| self.pipes[NODE].encode(writer));
        writer.optional(KEY, self.info.key.map(HashKey::get));
        writer.number(CLOSE_TIMEOUT, self.close_timeout);
        writer.finish()
    }

    /// Reads what [`encode`](Self::encode) wrote. The sockets, the client's and the node's, are not touched.
    pub(crate) fn decode<'a>(
        bytes: &'a [u8],
        sockets: [OwnedFd; 2],
        cache: &mut BatchCache<'a>,
    ) -> Result<Self, TunnelStateError> {
        let mut fields = tunnel_state::read_header(bytes)?;
        let fields = &mut fields;
        let [client, node] = sockets;
        let before = |ago: u64| CLOCK_ORIGIN.saturating_sub(ago);
        let mut tunnel = Self {
            info: SessionInfo::decode(fields, cache)?,
            max_message_size: fields.number(MAX_MESSAGE)?,
            idle_timeout: fields.number(IDLE)?,
            close_timeout: DEFAULT_CLOSE_TIMEOUT,
            adopted_at: before(fields.number(ADOPTED)?),
            last_active: before(fields.number(LAST_ACTIVE)?),
            last_message: fields.optional(LAST_MESSAGE)?.map_or(0, |ago| before(ago).max(1)),
            deadline: fields.optional(DEADLINE)?.map_or(u64::MAX, |left| CLOCK_ORIGIN.saturating_add(left)),
            cause: decode_cause(fields)?,
            is_close_sent: fields.flag(CLOSE_SENT)?,
            keepalive: Keepalive::decode(fields.section(KEEPALIVE)?, CLOCK_ORIGIN)?,
            endpoints: [
                Endpoint::decode(fields.section(CLIENT_ENDPOINT)?, client)?,
                Endpoint::decode(fields.section(NODE_ENDPOINT)?, node)?,
            ],
            pipes: [Pipe::decode(fields.section(FROM_CLIENT)?)?, Pipe::decode(fields.section(FROM_NODE)?)?],
            is_queued: false,
            was_frozen: true,
        };
        tunnel.info.key = fields.optional(KEY)?.map(u64::into);
        tunnel.close_timeout = fields.optional(CLOSE_TIMEOUT)?.unwrap_or(DEFAULT_CLOSE_TIMEOUT);
        fields.finish()?;
        Ok(tunnel)
    }

    /// Moves its times to the clock of the thread that takes it, which shows `now`.
    pub(crate) fn shift_clock(&mut self, now: u64) {
        let by = now - CLOCK_ORIGIN;
        self.adopted_at += by;
        self.last_active += by;
        if self.last_message != 0 {
            self.last_message += by;
        }
        self.deadline = self.deadline.saturating_add(by);
        self.keepalive.shift_clock(by);
    }

    /// Takes the sockets away, the client's and the node's; `None` when they are away already.
    pub(crate) fn take_sockets(&mut self) -> Option<[OwnedFd; 2]> {
        self.was_frozen = true;
        let [client, node] = self.endpoints.each_mut().map(Endpoint::take_socket);
        Some([client?, node?])
    }

    /// Puts the sockets back.
    pub(crate) fn restore_sockets(&mut self, sockets: [OwnedFd; 2]) {
        for (endpoint, socket) in self.endpoints.iter_mut().zip(sockets) {
            endpoint.restore_socket(socket);
        }
    }
}

impl SessionInfo {
    fn encode(&self, writer: &mut FieldWriter) {
        writer.number(ID, self.id);
        writer.bytes(CLIENT_ADDRESS, &encode_address(self.client));
        writer.bytes(POOL, self.node_connection.pool.as_bytes());
        writer.bytes(NODE_NAME, self.node_connection.node.as_bytes());
        writer.bytes(ROUTE, self.route.as_bytes());
        writer.number(GENERATION, self.generation);
        let since = self.opened_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        writer.number(OPENED_AT, u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
        writer.bytes(SOURCE, self.affinity.0.as_bytes());
        writer.bytes(OUTCOME, self.affinity.1.as_bytes());
        writer.bytes(TRACE, &self.trace);
        if let Some(permit) = &self.permit {
            writer.bytes(PERMIT, &permit.client().map(encode_address).unwrap_or_default());
        }
    }

    fn decode<'a>(
        fields: &mut FieldReader<'a>,
        cache: &mut BatchCache<'a>,
    ) -> Result<Self, TunnelStateError> {
        let id = fields.number(ID)?;
        let client = decode_address(fields.bytes(CLIENT_ADDRESS)?).ok_or(fields.invalid(CLIENT_ADDRESS))?;
        let (pool, node) = (fields.text(POOL)?, fields.text(NODE_NAME)?);
        let route = cache.route(fields.text(ROUTE)?);
        let generation = fields.number(GENERATION)?;
        let opened_at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(fields.number(OPENED_AT)?));
        let opened_at = opened_at.ok_or(fields.invalid(OPENED_AT))?;
        let affinity = (
            known_label(&AFFINITY_SOURCES, fields.text(SOURCE)?),
            known_label(&AFFINITY_OUTCOMES, fields.text(OUTCOME)?),
        );
        let trace = *fields.array(TRACE)?;
        let permit = match fields.find(PERMIT)? {
            None => None,
            Some([]) => cache.permit(None),
            Some(bytes) => cache.permit(Some(decode_address(bytes).ok_or(fields.invalid(PERMIT))?)),
        };
        let node_connection = cache.node_connection(pool, node);
        Ok(Self {
            id,
            client,
            node_connection,
            route,
            generation,
            opened_at,
            affinity,
            key: None,
            trace,
            permit,
        })
    }
}

/// What began the end, if something has.
fn decode_cause(fields: &mut FieldReader<'_>) -> Result<Option<CloseCause>, TunnelStateError> {
    let Some(side) = fields.optional::<u8>(CAUSE_SIDE)? else { return Ok(None) };
    let side = CloseSide::ALL.get(usize::from(side)).copied().ok_or(fields.invalid(CAUSE_SIDE))?;
    let code = fields.number(CAUSE_CODE)?;
    let reason = CloseReason::parse(fields.text(CAUSE_REASON)?);
    Ok(Some(CloseCause { side, code, reason }))
}

fn encode_address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(four) => four.octets().to_vec(),
        IpAddr::V6(six) => six.octets().to_vec(),
    }
}

fn decode_address(octets: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(octets).map(IpAddr::from).ok();
    four.or_else(|| <[u8; 16]>::try_from(octets).map(IpAddr::from).ok())
}

/// The label with this name, if this version knows it.
fn known_label(known: &[&'static str], name: &str) -> &'static str {
    known.iter().find(|known| **known == name).unwrap_or(&UNKNOWN_LABEL)
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
    use crate::net::connection_limit::ConnectionLimiter;
    use crate::net::tls::extracted::{CipherSuite, ExtractedTls, TlsProtocolVersion, TrafficKeys};
    use crate::relay::close_frame::CloseFrame;
    use crate::relay::endpoint::SocketEvents;
    use crate::relay::pipe::HEADROOM;
    use crate::relay::tick::{TickContext, TunnelProgress};
    use crate::relay::tls::TlsRole;
    use crate::relay::tls::tests::{meet, suites};
    use crate::relay::tunnel::EarlyBytes;
    use crate::relay::tunnel_state::TunnelCounters;
    use crate::relay::{Tunnel, TunnelLimits};
    use crate::ws::{close, frame};

    const ALL_EVENTS: SocketEvents =
        SocketEvents { is_readable: true, is_writable: true, has_hung_up: false };

    /// A tunnel whose ticks are the test's.
    struct SteppedTunnel {
        metrics: Arc<Metrics>,
        places: Arc<ConnectionLimiter>,
        tunnel: ActiveTunnel,
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

    impl SteppedTunnel {
        /// With TLS of this suite at both ends, if there is one.
        fn new(suite: Option<usize>, permit: Option<Option<IpAddr>>) -> Self {
            Self::with(|role| suite.map(|suite| meet(suites()[suite], role).1), permit)
        }

        fn with(tls: impl Fn(TlsRole) -> Option<ExtractedTls>, permit: Option<Option<IpAddr>>) -> Self {
            let (metrics, places) = (Metrics::new(1), Arc::<ConnectionLimiter>::default());
            let ((client, client_peer), (node, node_peer)) = (pair(), pair());
            let info = SessionInfo {
                id: u64::MAX,
                client: "2001:db8::1".parse().unwrap(),
                node_connection: metrics.node("chat", "ws1").acquire_permit(),
                route: Arc::from("/"),
                generation: 7,
                opened_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789),
                affinity: ("engine_io", "moved"),
                key: None,
                trace: *b"0123456789abcdef",
                permit: permit.map(|client| {
                    let mut permit = places.acquire(u32::MAX).unwrap();
                    assert!(client.is_none_or(|client| permit.acquire_for_client(client, 0)));
                    permit
                }),
            };
            let tunnel = Tunnel {
                client,
                node,
                client_tls: tls(TlsRole::Server),
                node_tls: tls(TlsRole::Client),
                from_client: Bytes::new(),
                from_node: Bytes::new(),
                limits: TunnelLimits {
                    idle_timeout: HOUR,
                    max_message_size: 100_000,
                    ping_interval: Some(Duration::from_secs(9)),
                    close_timeout: Duration::from_secs(10),
                },
                info,
            };
            let now = CLOCK_ORIGIN + 5;
            let tunnel = ActiveTunnel::new(tunnel, now).unwrap().0;
            let scratch = vec![0; HEADROOM + 4096];
            Self { metrics, places, tunnel, client: client_peer, node: node_peer, now, scratch }
        }

        fn tick(
            &mut self,
            visit: impl FnOnce(&mut ActiveTunnel, &mut TickContext<'_>) -> TunnelProgress,
        ) -> TunnelProgress {
            self.tunnel.endpoint(CLIENT).apply_events(ALL_EVENTS);
            self.tunnel.endpoint(NODE).apply_events(ALL_EVENTS);
            let mut tick =
                TickContext { scratch: &mut self.scratch, thread: 0, now: self.now, mask: [1, 2, 3, 4] };
            visit(&mut self.tunnel, &mut tick)
        }

        fn unpack(&self, bytes: &[u8]) -> Result<ActiveTunnel, TunnelStateError> {
            let mut cache = BatchCache::new(TunnelCounters { metrics: &self.metrics, limiter: &self.places });
            ActiveTunnel::decode(bytes, [pair().0, pair().0], &mut cache)
        }

        /// What has come to a peer.
        fn heard(peer: &mut UnixStream) -> Vec<u8> {
            let mut heard = Vec::new();
            // That there is no more now is no error.
            let _ = peer.read_to_end(&mut heard);
            heard
        }

        /// The tunnel migrates to another process, whose clock shows another time.
        fn migrate(&mut self, now: u64) {
            let bytes = self.tunnel.encode(self.now);
            let sockets = self.tunnel.take_sockets().unwrap();
            assert!(self.tunnel.is_frozen());
            let mut cache = BatchCache::new(TunnelCounters { metrics: &self.metrics, limiter: &self.places });
            let mut tunnel = ActiveTunnel::decode(&bytes, sockets, &mut cache).unwrap();
            tunnel.shift_clock(now);
            (self.tunnel, self.now) = (tunnel, now);
        }
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[derive(Debug, Clone)]
    enum TunnelStep {
        Say { from_client: bool, bytes: Vec<u8> },
        Hear { client: bool },
        Wait(u64),
        Close,
        Shut { client: bool },
        Migrate(u64),
    }

    fn act() -> impl Strategy<Value = TunnelStep> {
        let message = (any::<bool>(), 0usize..4000).prop_map(|(whole, len)| {
            let frame = [&[0x82, 126][..], &(len as u16).to_be_bytes(), &vec![5; len]].concat();
            if whole { frame } else { frame[..frame.len() * 2 / 3].to_vec() }
        });
        let control = any::<u8>().prop_map(|it| frame::encode_control(0x88 + it % 3, &[3, 0xe8], None));
        let bytes = prop_oneof![6 => message, 1 => control, 1 => prop::collection::vec(any::<u8>(), 0..30)];
        prop_oneof![
            6 => (any::<bool>(), bytes).prop_map(|(from_client, bytes)| TunnelStep::Say { from_client, bytes }),
            2 => any::<bool>().prop_map(|client| TunnelStep::Hear { client }),
            2 => (0u64..20_000).prop_map(TunnelStep::Wait),
            1 => Just(TunnelStep::Close),
            1 => any::<bool>().prop_map(|client| TunnelStep::Shut { client }),
            2 => (0u64..1 << 50).prop_map(|ahead| TunnelStep::Migrate(CLOCK_ORIGIN + ahead)),
        ]
    }

    impl SteppedTunnel {
        fn play(&mut self, act: &TunnelStep) {
            match act {
                TunnelStep::Say { from_client, bytes } => {
                    let peer = if *from_client { &mut self.client } else { &mut self.node };
                    // With TLS it is garbage, and that is a state, too. A full socket takes less.
                    let _ = peer.write(bytes);
                }
                TunnelStep::Hear { client } => {
                    Self::heard(if *client { &mut self.client } else { &mut self.node });
                }
                TunnelStep::Wait(time) => self.now += time,
                TunnelStep::Close => {
                    let close_frame =
                        CloseFrame { code: 1012, reason: "bye", cause: CloseReason::Drained, grace: 9_000 };
                    self.tick(|tunnel, tick| {
                        tunnel.begin_close(&close_frame, tick);
                        TunnelProgress::Idle
                    });
                }
                TunnelStep::Shut { client } => {
                    let peer = if *client { &self.client } else { &self.node };
                    // It may be shut already.
                    let _ = peer.shutdown(Shutdown::Write);
                }
                TunnelStep::Migrate(now) => self.migrate(*now),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(150))]

        #[test]
        fn a_decoded_tunnel_is_the_same(
            suite in prop::option::weighted(0.3, 0..6usize),
            permit in prop::option::of(prop::option::of(any::<u32>().prop_map(|it| IpAddr::V4(it.into())))),
            acts in prop::collection::vec(act(), 0..30),
        ) {
            let mut bench = SteppedTunnel::new(suite, permit);
            for act in &acts {
                bench.play(act);
                let progress = bench.tick(|tunnel, tick| match tunnel.pump_both(tick) {
                    TunnelProgress::Ended => TunnelProgress::Ended,
                    _ => tunnel.sweep(tick),
                });
                if progress == TunnelProgress::Ended {
                    break;
                }
            }
            let bytes = bench.tunnel.encode(bench.now);
            let again = bench.unpack(&bytes).unwrap();
            prop_assert_eq!(&*again.encode(CLOCK_ORIGIN), &*bytes);
            let wall = SystemTime::UNIX_EPOCH + 3 * HOUR;
            prop_assert_eq!(again.snapshot(CLOCK_ORIGIN, wall), bench.tunnel.snapshot(bench.now, wall));
            prop_assert_eq!(again.session_end(CLOCK_ORIGIN), bench.tunnel.session_end(bench.now));
        }

        #[test]
        fn bytes_that_are_no_tunnel_state_are_an_error_and_no_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..600), is_headed: bool,
        ) {
            let bench = SteppedTunnel::new(None, None);
            let head = if is_headed { &b"MSTN\0\x01"[..] } else { b"" };
            prop_assert!(bench.unpack(&[head, &bytes].concat()).is_err());
        }

        #[test]
        fn a_tunnel_state_that_is_changed_anywhere_makes_no_panic(
            suite in prop::option::of(0..6usize), cut in any::<prop::sample::Index>(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), truncate: bool,
        ) {
            let bench = SteppedTunnel::new(suite, Some(None));
            let mut bytes = bench.tunnel.encode(bench.now).to_vec();
            for (at, byte) in &changes {
                *at.get_mut(&mut bytes) = *byte;
            }
            if truncate {
                bytes.truncate(cut.index(bytes.len()));
                prop_assert!(bench.unpack(&bytes).is_err());
            } else if let Ok(mut tunnel) = bench.unpack(&bytes) {
                tunnel.shift_clock(CLOCK_ORIGIN + 99);
                tunnel.snapshot(CLOCK_ORIGIN + 99, SystemTime::now());
                tunnel.session_end(CLOCK_ORIGIN + 99);
                tunnel.encode(CLOCK_ORIGIN + 99);
            }
        }
    }

    #[test]
    fn a_ping_that_waits_for_the_end_of_a_frame_migrates_and_its_pong_is_known() {
        let mut bench = SteppedTunnel::new(None, None);
        let message = [&[0x82, 126, 0, 200][..], &[5; 200]].concat();
        bench.node.write_all(&message[..100]).unwrap();
        bench.tick(ActiveTunnel::pump_both);
        bench.now += 9_500;
        bench.tick(|tunnel, tick| tunnel.sweep(tick));
        bench.migrate(CLOCK_ORIGIN);
        bench.node.write_all(&message[100..]).unwrap();
        bench.tick(ActiveTunnel::pump_both);
        let heard = SteppedTunnel::heard(&mut bench.client);
        let (passed, ping) = heard.split_at(message.len());
        assert_eq!((passed, ping.len(), ping[0]), (&message[..], 10, 0x89));
        bench.migrate(CLOCK_ORIGIN + 77);
        bench.now += 40;
        let pong = frame::encode_control(frame::opcode::PONG, &ping[2..], Some([1; 4]));
        bench.client.write_all(&pong).unwrap();
        bench.tick(ActiveTunnel::pump_both);
        assert_eq!(SteppedTunnel::heard(&mut bench.node), b"", "it is the balancer's own");
        let round_trip = bench.tunnel.snapshot(bench.now, SystemTime::UNIX_EPOCH).round_trip;
        assert_eq!(round_trip, Some(Duration::from_millis(40)));
    }

    #[test]
    fn the_deadline_of_a_close_migrates_as_the_time_left() {
        let mut bench = SteppedTunnel::new(None, None);
        let close_frame = CloseFrame { code: 1012, reason: "bye", cause: CloseReason::Drained, grace: 5_000 };
        bench.tick(|tunnel, tick| {
            tunnel.begin_close(&close_frame, tick);
            tunnel.pump_both(tick)
        });
        bench.now += 3_000;
        bench.migrate(CLOCK_ORIGIN + (1 << 45));
        bench.now += 1_999;
        assert_eq!(bench.tick(|tunnel, tick| tunnel.sweep(tick)), TunnelProgress::Idle);
        bench.now += 1;
        assert_eq!(bench.tick(|tunnel, tick| tunnel.sweep(tick)), TunnelProgress::Ended);
        let end = bench.tunnel.session_end(bench.now);
        assert_eq!((end.code, end.reason, end.duration), (1012, CloseReason::Drained, 5 * SECOND));
        assert_eq!(SteppedTunnel::heard(&mut bench.client), close::encode_close(1012, "bye", None));
    }

    #[test]
    fn the_deadline_of_a_half_ended_tunnel_migrates_and_one_without_gets_one() {
        let mut bench = SteppedTunnel::new(None, None);
        bench.client.shutdown(Shutdown::Write).unwrap();
        bench.tick(ActiveTunnel::pump_both);
        // A version without this deadline hands the tunnel over; this one sets it with its first sweep.
        bench.now += 60_000;
        bench.migrate(CLOCK_ORIGIN + (1 << 45));
        assert_eq!(bench.tick(|tunnel, tick| tunnel.sweep(tick)), TunnelProgress::Idle);
        bench.now += 4_000;
        assert_eq!(bench.tick(|tunnel, tick| tunnel.sweep(tick)), TunnelProgress::Idle);
        bench.migrate(CLOCK_ORIGIN + 7);
        bench.now += 5_999;
        assert_eq!(bench.tick(|tunnel, tick| tunnel.sweep(tick)), TunnelProgress::Idle);
        bench.now += 1;
        assert_eq!(bench.tick(|tunnel, tick| tunnel.sweep(tick)), TunnelProgress::Ended);
        let end = bench.tunnel.session_end(bench.now);
        assert_eq!((end.side, end.code, end.reason), (CloseSide::Client, 1006, CloseReason::CloseTimeout));
    }

    #[test]
    fn the_message_under_way_migrates_and_an_ended_one_does_not() {
        let mut bench = SteppedTunnel::new(None, None);
        let fragment = |first| [&[first, 126][..], &40_000u16.to_be_bytes(), &vec![0; 40_000]].concat();
        let say = |bench: &mut SteppedTunnel, first| {
            let (mut message, mut heard) = (&fragment(first)[..], 0);
            while !message.is_empty() || heard < 40_004 {
                // A full socket takes less.
                let taken = bench.node.write(message).unwrap_or(0);
                message = &message[taken..];
                bench.tick(ActiveTunnel::pump_both);
                let more = SteppedTunnel::heard(&mut bench.client);
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
            bench.migrate(CLOCK_ORIGIN + 1);
        }
        assert!(say(&mut bench, 0x00));
        bench.migrate(CLOCK_ORIGIN + 1);
        assert!(!say(&mut bench, 0x80), "the message that began before both moves is too long");
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// A tunnel with a value in every field.
    fn eventful() -> SteppedTunnel {
        let keys = |seed| {
            Box::new(TrafficKeys { secret: [seed; 48], key: [seed + 1; 32], iv: [seed + 2; 12], seq: 40 })
        };
        let departed = |role| {
            let (version, suite) = match role {
                TlsRole::Server => (TlsProtocolVersion::Tls13, CipherSuite::Aes256Gcm),
                TlsRole::Client => (TlsProtocolVersion::Tls12, CipherSuite::Chacha20Poly1305),
            };
            let (undecrypted, unsent) = (vec![23, 3, 3, 0, 60, 1, 2, 3], vec![]);
            let (tx, rx, decrypted, has_close_notify) = (keys(1), keys(101), vec![], false);
            Some(ExtractedTls { version, suite, tx, rx, undecrypted, unsent, decrypted, has_close_notify })
        };
        let mut bench = SteppedTunnel::with(departed, Some(Some("192.0.2.7".parse().unwrap())));
        bench.tick(|tunnel, tick| {
            // In a frame of the node's, and in a header of the client's.
            tunnel.relay_early(
                &[Bytes::from_static(&[0x82, 0xfe, 1]), NODE_SAYS]
                    .map(|received| EarlyBytes { received, decrypted: Bytes::new() }),
                tick,
            );
            tunnel.begin_close(
                &CloseFrame { code: 1012, reason: "moved", cause: CloseReason::Drained, grace: 5_000 },
                tick,
            );
            tunnel.pump_both(tick)
        });
        bench.tunnel.endpoint(NODE).suppress_close_notify();
        bench.now += 1_234;
        bench
    }

    const NODE_SAYS: Bytes = Bytes::from_static(&[0x81, 5, b'h', b'e']);

    /// The state that the first build wrote: later ones read it as long as the version is 1.
    const FIRST: &str = include_str!("state-1.hex");
    /// With the close timeout and the message under way. When a field is added, this stays, and another one follows it.
    const SECOND_FORM: &str = include_str!("state-1-close.hex");

    fn from_hex(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn the_state_that_an_earlier_build_wrote_is_still_read() {
        let bench = eventful();
        for earlier in [FIRST, SECOND_FORM] {
            let earlier = from_hex(earlier);
            let read = bench.unpack(&earlier).unwrap();
            let wall = SystemTime::UNIX_EPOCH + 3 * HOUR;
            assert_eq!(read.snapshot(CLOCK_ORIGIN, wall), bench.tunnel.snapshot(bench.now, wall));
            assert_eq!(read.session_end(CLOCK_ORIGIN), bench.tunnel.session_end(bench.now));
        }
        let now: String = bench.tunnel.encode(bench.now).iter().map(|byte| format!("{byte:02x}")).collect();
        let last: String = SECOND_FORM.split_whitespace().collect();
        assert_eq!(now, last);
    }

    #[test]
    fn a_label_that_only_another_version_knows_stops_no_tunnel() {
        assert_eq!(known_label(&AFFINITY_SOURCES, "header"), "header");
        assert_eq!(known_label(&AFFINITY_SOURCES, "the stars"), "other");
        assert_eq!(
            (CloseReason::parse("idle"), CloseReason::parse("boredom")),
            (CloseReason::Idle, CloseReason::Broken)
        );
        assert!(CloseReason::ALL.into_iter().all(|reason| CloseReason::parse(reason.as_str()) == reason));
    }

    #[test]
    fn an_address_is_4_or_16_bytes() {
        for known in [IpAddr::V4(Ipv4Addr::LOCALHOST), "2001:db8::1".parse().unwrap()] {
            assert_eq!(decode_address(&encode_address(known)), Some(known));
        }
        assert_eq!((decode_address(&[]), decode_address(&[1; 5])), (None, None));
    }
}
