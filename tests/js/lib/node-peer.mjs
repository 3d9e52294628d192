// A Node.js Socket.IO server that is driven over standard input like crates/mainstay-node/tests/peers/peer.rs, with the same words, so that a
// test need not know which of the two it talks to.
//
// From the environment: ADAPTER (pubsub, sharded, streams), REDIS (a URL, or several of a cluster with commas between),
// RECOVERY (seconds; 0: none), NAME.

import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

import { createAdapter, createShardedAdapter } from '@socket.io/redis-adapter';
import { createAdapter as createStreamsAdapter } from '@socket.io/redis-streams-adapter';
import { createClient, createCluster } from 'redis';
import { Server } from 'socket.io';

const { ADAPTER, REDIS, RECOVERY = '0', NAME } = process.env;
const say = (value) => process.stdout.write(`${JSON.stringify(value, encode)}\n`);

/** `Buffer.toJSON` has run already when a replacer sees the value. */
function encode(_, value) {
  return value?.type === 'Buffer' ? { $bin: Buffer.from(value.data).toString('hex') } : value;
}

function decode(value) {
  if (Array.isArray(value)) return value.map(decode);
  if (value === null || typeof value !== 'object') return value;
  if (typeof value.$bin === 'string') return Buffer.from(value.$bin, 'hex');
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, decode(inner)]));
}

async function connect() {
  const urls = REDIS.split(',');
  const place = (url) => (url.startsWith('/') ? { socket: { path: url } } : { url });
  const client = urls.length > 1 ? createCluster({ rootNodes: urls.map(place) }) : createClient(place(urls[0]));
  client.on('error', () => {});
  await client.connect();
  return client;
}

async function adapter() {
  if (ADAPTER === 'streams') return createStreamsAdapter(await connect());
  const [pub, sub] = [await connect(), await connect()];
  return ADAPTER === 'sharded' ? createShardedAdapter(pub, sub) : createAdapter(pub, sub);
}

const recovery = Number(RECOVERY) * 1000;
const http = createServer();
const io = new Server(http, {
  adapter: await adapter(),
  ...(recovery > 0 ? { connectionStateRecovery: { maxDisconnectionDuration: recovery } } : {}),
});
for (const name of ['/', '/admin']) {
  const nsp = io.of(name);
  nsp.on('connection', (socket) => {
    if (!socket.recovered) socket.data = decode(socket.handshake.auth.data ?? {});
    socket.on('join', async (...args) => {
      const answer = args.pop();
      await socket.join(args);
      answer('joined');
    });
    socket.on('echo', (...args) => args.pop()(...args));
  });
  const listen = (event) =>
    nsp.on(event, (...args) => {
      const answer = typeof args.at(-1) === 'function' ? args.pop() : undefined;
      say({ server: [event, ...args] });
      answer?.(NAME);
    });
  ['hello', 'question'].forEach(listen);
}

async function carryOut({ op, nsp = '/', rooms = [], except = [], into = [], event = 'event', args = [], ...call }) {
  const namespace = io.of(nsp);
  const given = decode(args);
  let meant = namespace.to([]);
  rooms.forEach((room) => (meant = meant.to(room)));
  except.forEach((room) => (meant = meant.except(room)));
  if (call.volatile) meant = meant.volatile;
  if (call.local) meant = meant.local;
  switch (op) {
    case 'emit':
      meant.emit(event, ...given);
      return null;
    case 'emitWithAck':
      return new Promise((resolve) => {
        meant.timeout(call.timeout ?? 5000).emit(event, ...given, (fault, answers) => {
          resolve(fault ? { answers, fault: fault.message } : { answers });
        });
      });
    case 'fetchSockets':
      return (await meant.fetchSockets()).map(({ id, handshake, rooms: inside, data }) => {
        return { id, handshake, rooms: [...inside], data };
      });
    case 'join':
      meant.socketsJoin(into);
      return null;
    case 'leave':
      meant.socketsLeave(into);
      return null;
    case 'disconnect':
      meant.disconnectSockets(call.close ?? false);
      return null;
    case 'serverSideEmit':
      namespace.serverSideEmit(event, ...given);
      return null;
    case 'serverSideEmitWithAck':
      return new Promise((resolve) => {
        namespace.serverSideEmit(event, ...given, (fault, answers) => {
          resolve(fault ? { answers, fault: fault.message } : { answers });
        });
      });
    case 'serverCount':
      return namespace.adapter.serverCount();
    case 'local':
      return namespace.sockets.size;
    default:
      throw new Error(`there is no operation ${op}`);
  }
}

createInterface({ input: process.stdin })
  .on('line', async (line) => {
    const call = JSON.parse(line);
    try {
      say({ id: call.id, result: (await carryOut(call)) ?? null });
    } catch (fault) {
      say({ id: call.id, error: fault.message });
    }
  })
  .on('close', () => process.exit(0));
http.listen(0, '127.0.0.1', () => say({ ready: { port: http.address().port } }));
