//! Reading the streams: each on a connection of its own, from the place where the node began, without a gap.
//!
//! 1. find the place: the last entry that there is at the start, or the last one that was read;
//! 2. after an absence, say what was trimmed meanwhile and cannot be read any more;
//! 3. read on, and hand each entry to the adapter of its namespace; on an error begin anew.
//!
//! The server counts the entries ever added to a stream. The reader counts along, so it knows how many it has missed.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use redis::{RedisError, RedisResult, Value as Reply};
use tokio::sync::SemaphorePermit;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::history::HistoryReader;
use super::own_broadcasts::content_hash;
use super::tail::{self, StreamTail};
use crate::adapter::Offset;
use crate::backoff::RECONNECT;
use crate::client::RedisConnection;
use crate::offset::parse_offset;
use crate::peer::AdapterContext;
use crate::random::random_u64;
use crate::settings::StreamsSettings as Settings;
use crate::wire::envelope::Envelope;
use crate::wire::{WireError, entry};

/// One entry of a stream.
#[derive(Debug, Clone)]
pub(super) struct StreamEntry {
    /// Its id.
    pub id: String,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl StreamEntry {
    /// Bytes of its fields.
    pub(super) fn size(&self) -> usize {
        self.fields.iter().map(|(field, value)| field.len() + value.len()).sum()
    }

    /// Its fields.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|(field, value)| (&field[..], &value[..]))
    }

    /// One of them.
    pub(super) fn field(&self, name: &[u8]) -> Option<&[u8]> {
        self.fields().find(|(field, _)| *field == name).map(|(_, value)| value)
    }
}

/// The entries in a reply to XRANGE, or in the part of one to XREAD.
pub(super) fn entries_in(reply: Reply) -> Vec<StreamEntry> {
    redis::from_redis_value::<Vec<(String, Vec<Vec<u8>>)>>(reply)
        .unwrap_or_default()
        .into_iter()
        .map(|(id, parts)| {
            let mut parts = parts.into_iter();
            let pairs = std::iter::from_fn(|| Some((parts.next()?, parts.next()?)));
            StreamEntry { id, fields: pairs.collect() }
        })
        .collect()
}

/// The adapter of a namespace, which the entries of its stream are handed to.
pub(super) trait EntryHandler: Send + Sync {
    /// Does what an entry says; `hash` is that of its data.
    fn apply_entry(&self, envelope: Envelope, hash: u64, offset: &Offset);

    /// Counts an entry that cannot be read.
    fn report_unreadable(&self, error: &WireError);
}

/// The readers of all streams of one adapter.
pub(crate) struct StreamReaders {
    /// Adapters by namespace.
    adapters: RwLock<HashMap<Arc<str>, Weak<dyn EntryHandler>>>,
    /// Streams whose reader has found its place, and whether it reads now.
    places: RwLock<HashMap<Arc<str>, bool>>,
    /// The newest broadcasts of each stream, where sessions can be taken up again.
    tails: HashMap<Arc<str>, Arc<StreamTail>>,
    /// What reads older entries.
    history: HistoryReader,
}

impl StreamReaders {
    /// Begins to read every stream, until `closed`.
    pub(crate) fn start(
        shared: &Arc<AdapterContext>,
        settings: &Settings,
        closed: &CancellationToken,
    ) -> Arc<StreamReaders> {
        let streams: Vec<Arc<str>> = entry::streams_to_read(&settings.name, settings.stream_count)
            .into_iter()
            .map(Arc::from)
            .collect();
        let share = if settings.recovery.is_some() { tail::MAX_BYTES / streams.len().max(1) } else { 0 };
        let readers = Arc::new(StreamReaders {
            adapters: RwLock::default(),
            places: RwLock::default(),
            tails: streams.iter().map(|stream| (stream.clone(), Arc::new(StreamTail::new(share)))).collect(),
            history: HistoryReader::new(&shared.redis, shared.settings.response_timeout),
        });
        for stream in streams {
            let reader = StreamReader {
                shared: shared.clone(),
                settings: settings.clone(),
                readers: readers.clone(),
                tail: readers.tail(&stream),
                stream,
                place: None,
            };
            let closed = closed.clone();
            shared.tasks.spawn(async move { closed.run_until_cancelled(reader.run()).await });
        }
        readers
    }

    pub(super) fn register(&self, nsp: &Arc<str>, adapter: Weak<dyn EntryHandler>) {
        self.adapters.write().insert(nsp.clone(), adapter);
    }

    /// Whether what is written to a stream now will be read back.
    pub(super) fn has_position(&self, stream: &str) -> bool {
        self.places.read().contains_key(stream)
    }

    /// Whether every stream is read now.
    pub(crate) fn are_reading(&self, streams: u32) -> bool {
        let places = self.places.read();
        let expected = if streams <= 1 { 1 } else { 2 * streams as usize - 1 };
        places.len() == expected && places.values().all(|reads| *reads)
    }

    /// The tail of a stream.
    pub(super) fn tail(&self, stream: &str) -> Arc<StreamTail> {
        self.tails.get(stream).cloned().unwrap_or_else(|| Arc::new(StreamTail::new(0)))
    }

    /// Waits until one more client may ask for its session.
    pub(super) async fn claim_permit(&self) -> Option<SemaphorePermit<'_>> {
        self.history.claim_permit().await
    }

    /// Asks for older entries.
    pub(super) async fn query_history(&self, command: &redis::Cmd) -> Option<Reply> {
        self.history.query(command).await
    }

    fn dispatch(&self, entry: &StreamEntry, tail: &StreamTail) {
        let nsp = entry.field(b"nsp").and_then(|nsp| std::str::from_utf8(nsp).ok());
        let adapter = nsp.and_then(|nsp| self.adapters.read().get(nsp).and_then(Weak::upgrade));
        // A namespace that this node does not have.
        let Some(adapter) = adapter else { return };
        match entry::read(entry.fields()) {
            Ok(Some(envelope)) => {
                // Before it is delivered: whoever reads the tail's end meanwhile finds it there or among the notes.
                tail.record(&entry.id, &envelope);
                let hash = content_hash(entry.field(b"data").unwrap_or_default());
                adapter.apply_entry(envelope, hash, &Offset::from(entry.id.as_str()));
            }
            Ok(None) => {}
            Err(fault) => adapter.report_unreadable(&fault),
        }
    }
}

/// Where a reader is.
#[derive(Debug, Clone, PartialEq)]
struct ReadPosition {
    /// The last entry that was read, or before which nothing is wanted.
    id: String,
    /// How many entries there were up to it since the stream began; none from a server that does not count (Redis 6).
    number: Option<u64>,
}

/// What the server says of a stream.
#[derive(Debug, Clone, PartialEq)]
struct StreamInfo {
    /// The last entry that was ever added.
    last: String,
    /// Entries in it now.
    length: u64,
    /// Entries ever added.
    added: Option<u64>,
}

/// The reader of one stream.
struct StreamReader {
    shared: Arc<AdapterContext>,
    settings: Settings,
    readers: Arc<StreamReaders>,
    stream: Arc<str>,
    tail: Arc<StreamTail>,
    place: Option<ReadPosition>,
}

impl StreamReader {
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let before = self.place.clone();
            let error = match self.read().await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            failures = if self.place == before { failures + 1 } else { 1 };
            if let Some(reads) = self.readers.places.write().get_mut(&self.stream) {
                *reads = false;
            }
            debug!(stream = %self.stream, %error, "reading a stream failed");
            tokio::time::sleep(RECONNECT.delay(failures, random_u64())).await;
        }
    }

    /// Reads until an error.
    async fn read(&mut self) -> RedisResult<std::convert::Infallible> {
        let max_wait = self.shared.settings.response_timeout;
        let connection = self.shared.redis.open_connection(self.settings.block + max_wait).await?;
        self.find_position(&connection).await?;
        loop {
            let place = self.place.as_ref().expect("found above");
            let mut command = redis::cmd("XREAD");
            command.arg("BLOCK").arg(self.settings.block.as_millis() as u64);
            command.arg("COUNT").arg(self.settings.read_count);
            command.arg("STREAMS").arg(&*self.stream).arg(&place.id);
            let entries = entries_of_one_stream(connection.query(&command).await?);
            let is_behind = entries.len() >= self.settings.read_count as usize;
            self.dispatch(entries);
            if is_behind {
                // Whoever is far behind may be overtaken by the trimming.
                self.find_position(&connection).await?;
            }
        }
    }

    fn dispatch(&mut self, entries: Vec<StreamEntry>) {
        let place = self.place.as_mut().expect("found before anything is read");
        let metrics = &self.shared.metrics;
        let mut lag = 0.0;
        for entry in entries {
            lag = age(&entry.id);
            metrics.record_delivery(Duration::from_secs_f64(lag));
            self.readers.dispatch(&entry, &self.tail);
            place.number = place.number.map(|number| number + 1);
            place.id = entry.id;
        }
        metrics.set_lag(Duration::from_secs_f64(lag));
    }

    /// Finds the place at the start, or says what has been missed since.
    async fn find_position(&mut self, connection: &RedisConnection) -> RedisResult<()> {
        let facts = stream_info(connection, &self.stream).await?;
        let place = match &self.place {
            None => {
                info!(stream = %self.stream, from = %facts.last, "reading a stream");
                ReadPosition { id: facts.last, number: facts.added }
            }
            Some(place) => match detect_change(place, &facts) {
                StreamChange::Continuous => place.clone(),
                StreamChange::Trimmed(entries) => {
                    self.shared.metrics.record_missed(entries);
                    warn!(stream = %self.stream, entries, "entries trimmed before they were read");
                    ReadPosition { number: facts.added.map(|added| added - facts.length), ..place.clone() }
                }
                StreamChange::Replaced => {
                    self.shared.metrics.record_missed(1);
                    warn!(stream = %self.stream, "stream replaced: its unread entries are lost");
                    ReadPosition { id: facts.last.clone(), number: facts.added }
                }
                StreamChange::Restarted => {
                    ReadPosition { number: facts.added.map(|added| added - facts.length), ..place.clone() }
                }
            },
        };
        // What lies between is not there, or unknown; nothing of the kind when it reads on.
        if self.place.as_ref().is_none_or(|before| *before != place)
            && let Some(from) = parse_offset(&place.id)
        {
            self.tail.restart(from);
        }
        self.place = Some(place);
        self.readers.places.write().insert(self.stream.clone(), true);
        Ok(())
    }
}

/// What became of a stream since a place in it.
#[derive(Debug, PartialEq)]
enum StreamChange {
    /// Everything since is there.
    Continuous,
    /// So many entries are not.
    Trimmed(u64),
    /// It ends before the place: it is another one, or an older state of it.
    Replaced,
    /// It is another one that begins after the place, so that all of it is still to be read; what the one before held
    /// and was not read cannot be known.
    Restarted,
}

fn detect_change(place: &ReadPosition, facts: &StreamInfo) -> StreamChange {
    let ids = (parse_offset(&place.id), parse_offset(&facts.last));
    if let (Some(place), Some(last)) = ids
        && last < place
    {
        return StreamChange::Replaced;
    }
    match (place.number, facts.added) {
        (Some(number), Some(added)) if added < number => StreamChange::Restarted,
        (Some(number), Some(added)) => match added.saturating_sub(facts.length).saturating_sub(number) {
            0 => StreamChange::Continuous,
            trimmed => StreamChange::Trimmed(trimmed),
        },
        _ => StreamChange::Continuous,
    }
}

/// Asks what the server knows of a stream; one that does not exist is empty.
async fn stream_info(connection: &RedisConnection, stream: &str) -> RedisResult<StreamInfo> {
    let reply = connection.query::<Reply>(redis::cmd("XINFO").arg("STREAM").arg(stream)).await;
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) if is_no_such_key(&error) => {
            return Ok(StreamInfo { last: "0-0".to_owned(), length: 0, added: Some(0) });
        }
        Err(error) => return Err(error),
    };
    let map = redis::from_redis_value::<HashMap<String, Reply>>(reply)?;
    let number = |name| map.get(name).and_then(|value| redis::from_redis_value_ref::<u64>(value).ok());
    let last = map.get("last-generated-id").map(redis::from_redis_value_ref::<String>).transpose()?;
    Ok(StreamInfo {
        last: last.unwrap_or_else(|| "0-0".to_owned()),
        length: number("length").unwrap_or_default(),
        added: number("entries-added"),
    })
}

fn is_no_such_key(error: &RedisError) -> bool {
    error.to_string().contains("no such key")
}

/// The entries in a reply to XREAD of one stream: a map in RESP3, a list of pairs before, nil if nothing came.
fn entries_of_one_stream(reply: Reply) -> Vec<StreamEntry> {
    match reply {
        Reply::Map(mut streams) => streams.pop().map(|(_, entries)| entries_in(entries)).unwrap_or_default(),
        Reply::Array(mut streams) => match streams.pop() {
            Some(Reply::Array(mut pair)) => pair.pop().map(entries_in).unwrap_or_default(),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// Seconds since an entry was added, by this machine's clock; never negative, as clocks differ.
fn age(id: &str) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let added = parse_offset(id).map_or(now, |(time, _)| time);
    now.saturating_sub(added) as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_stream_is_told_from_its_ids_and_counts() {
        let place = ReadPosition { id: "50-3".into(), number: Some(10) };
        let facts = |last: &str, length, added| StreamInfo { last: last.into(), length, added };
        assert_eq!(detect_change(&place, &facts("50-3", 10, Some(10))), StreamChange::Continuous);
        assert_eq!(
            detect_change(&place, &facts("60-0", 5, Some(15))),
            StreamChange::Continuous,
            "trimmed up to the place"
        );
        assert_eq!(detect_change(&place, &facts("60-0", 5, Some(18))), StreamChange::Trimmed(3));
        assert_eq!(detect_change(&place, &facts("50-2", 1, Some(1))), StreamChange::Replaced);
        assert_eq!(detect_change(&place, &facts("0-0", 0, Some(0))), StreamChange::Replaced);
        assert_eq!(detect_change(&place, &facts("90-0", 2, Some(2))), StreamChange::Restarted);
        assert_eq!(
            detect_change(&place, &facts("90-0", 2, None)),
            StreamChange::Continuous,
            "Redis 6 does not count"
        );
    }
}
