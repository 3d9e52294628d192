//! What Redis keeps of presence, and the scripts that change it, each of them atomic.
//!
//! With the prefix `user`:
//!
//! - `user:connections`: a hash, user → the node of the user's newest connection.
//! - `user:{id}`: a hash with `socketId`, `nodeId`, `connectedAt` (ISO 8601) and `status` of the newest connection, as
//!   fleets keep them, and a field `socket:{socketId}` for each connection with the same as JSON. Fields that somebody
//!   else writes there stay.
//!   A server of another kind that keeps its own user there as `socketId` and so on has that entry put aside, as the
//!   field `other`, while a newer connection of this kind is shown, and gets it back when that one leaves.
//! - `user-leases`: a sorted set, boot → Unix milliseconds until which it is believed; a boot is one life of a node.
//! - `user-node:{boot}`: a set of the users that the node has written, so that others can tidy up after it.
//!
//! On a Redis Cluster the prefix is `{user}`: all of presence is in one slot, since a script touches several keys.

/// Functions that the scripts below begin with. Times are Redis' own, so that no two clocks are compared.
const FUNCTIONS: &str = r"
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function newest_is(user_key, all_key, user, c)
  redis.call('HSET', user_key, 'socketId', c.socketId, 'nodeId', c.nodeId, 'connectedAt', c.connectedAt, 'status', c.status)
  redis.call('HSET', all_key, user, c.nodeId)
end
local function is_newer(c, time, socket)
  return c.connectedAt > time or (c.connectedAt == time and c.socketId >= socket)
end
local function settle(user_key, all_key, user)
  local newest
  local fields = redis.call('HGETALL', user_key)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 7) == 'socket:' then
      local c = cjson.decode(fields[i + 1])
      if not newest or is_newer(c, newest.connectedAt, newest.socketId) then newest = c end
    end
  end
  local other = redis.call('HGET', user_key, 'other')
  if other then
    local c = cjson.decode(other)
    if not newest or is_newer(c, newest.connectedAt, newest.socketId) then
      newest = c
      redis.call('HDEL', user_key, 'other')
    end
  end
  if newest then
    newest_is(user_key, all_key, user, newest)
  else
    redis.call('HDEL', user_key, 'socketId', 'nodeId', 'connectedAt', 'status')
    redis.call('HDEL', all_key, user)
  end
end
";

/// KEYS: user, connections, node; ARGV: user, the connection as JSON (with its boot), its socket. Also for one that is
/// there and has changed. Of two that came in one millisecond, the newest is the one with the greater name.
const ARRIVE: &str = r"
redis.call('HSET', KEYS[1], 'socket:' .. ARGV[3], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[1])
local newest = redis.call('HMGET', KEYS[1], 'connectedAt', 'socketId', 'nodeId', 'status')
local c = cjson.decode(ARGV[2])
if newest[1] and newest[2] and redis.call('HEXISTS', KEYS[1], 'socket:' .. newest[2]) == 0 then
  local other = { connectedAt = newest[1], socketId = newest[2], nodeId = newest[3] or '', status = newest[4] or '' }
  redis.call('HSET', KEYS[1], 'other', cjson.encode(other))
end
if not newest[1] or is_newer(c, newest[1], newest[2] or '') then newest_is(KEYS[1], KEYS[2], ARGV[1], c) end
return 1
";

/// KEYS: user, connections, node; ARGV: user, socket, `1` when it was the node's last of this user, boot. A socket that
/// has come back on another node is that node's by now.
const LEAVE: &str = r"
local kept = redis.call('HGET', KEYS[1], 'socket:' .. ARGV[2])
local left = 0
if kept and cjson.decode(kept).boot == ARGV[4] then left = redis.call('HDEL', KEYS[1], 'socket:' .. ARGV[2]) end
if left == 1 and redis.call('HGET', KEYS[1], 'socketId') == ARGV[2] then settle(KEYS[1], KEYS[2], ARGV[1]) end
if ARGV[3] == '1' then redis.call('SREM', KEYS[3], ARGV[1]) end
return left
";

/// KEYS: leases; ARGV: boot, lease in milliseconds. Gives 1 when the lease had not run out before, and the boots whose
/// lease has.
const RENEW: &str = r"
local time = now()
local until_then = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], time + ARGV[2], ARGV[1])
local held = until_then and tonumber(until_then) > time
return { held and 1 or 0, redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time) }
";

/// KEYS: leases, the dead node, connections; ARGV: its boot, what user keys begin with. Gives 1 while there is more.
const REAP: &str = r"
local until_then = redis.call('ZSCORE', KEYS[1], ARGV[1])
if until_then and tonumber(until_then) > now() then return 0 end
local users = redis.call('SPOP', KEYS[2], 100)
for _, user in ipairs(users) do
  local key = ARGV[2] .. user
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 7) == 'socket:' and cjson.decode(fields[i + 1]).boot == ARGV[1] then
      redis.call('HDEL', key, fields[i])
    end
  end
  settle(key, KEYS[3], user)
end
if #users == 100 then return 1 end
redis.call('ZREM', KEYS[1], ARGV[1])
return 0
";

/// KEYS: leases, node; ARGV: boot. The node has removed every connection of its own before.
const END: &str = r"
redis.call('ZREM', KEYS[1], ARGV[1])
return redis.call('DEL', KEYS[2])
";

/// The keys of one prefix.
#[derive(Debug, Clone)]
pub(super) struct PresenceKeys {
    prefix: String,
}

impl PresenceKeys {
    /// The keys; on a Redis Cluster all in one slot.
    pub(super) fn new(prefix: &str, is_cluster: bool) -> Self {
        Self { prefix: if is_cluster { format!("{{{prefix}}}") } else { prefix.into() } }
    }

    /// The hash of a user.
    pub(super) fn user(&self, user: &str) -> String {
        format!("{}:{user}", self.prefix)
    }

    fn connections(&self) -> String {
        format!("{}:connections", self.prefix)
    }

    fn leases(&self) -> String {
        format!("{}-leases", self.prefix)
    }

    fn node(&self, boot: &str) -> String {
        format!("{}-node:{boot}", self.prefix)
    }

    /// A connection is there, or has changed; `json` is all of it, with the boot.
    pub(super) fn arrive(&self, boot: &str, user: &str, json: &str, socket: &str) -> redis::Cmd {
        let keys = [self.user(user), self.connections(), self.node(boot)];
        eval(ARRIVE, &keys, &[user, json, socket])
    }

    /// A connection has gone.
    pub(super) fn leave(&self, boot: &str, user: &str, socket: &str, was_last: bool) -> redis::Cmd {
        let keys = [self.user(user), self.connections(), self.node(boot)];
        eval(LEAVE, &keys, &[user, socket, if was_last { "1" } else { "0" }, boot])
    }

    /// The node lives.
    pub(super) fn renew(&self, boot: &str, millis: u64) -> redis::Cmd {
        eval(RENEW, &[self.leases()], &[boot, &millis.to_string()])
    }

    /// A dead node's connections are removed, some at a time.
    pub(super) fn reap(&self, boot: &str) -> redis::Cmd {
        let keys = [self.leases(), self.node(boot), self.connections()];
        eval(REAP, &keys, &[boot, &self.user("")])
    }

    /// The node ends in order.
    pub(super) fn end(&self, boot: &str) -> redis::Cmd {
        eval(END, &[self.leases(), self.node(boot)], &[boot])
    }
}

/// The script's text each time: what is not cached after a restart of Redis needs no second try.
fn eval(script: &str, keys: &[String], arguments: &[&str]) -> redis::Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(format!("{FUNCTIONS}{script}")).arg(keys.len()).arg(keys).arg(arguments);
    command
}
