// Real Socket.IO clients of both generations on a real node, by every transport: what they say arrives, in order and
// whole, also while a session changes its transport.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';

import { io as io4 } from 'socket.io-client';
import io2 from 'socket.io-client-2';

import { MainstayNode } from './lib/mainstay-node.mjs';
import { until, within } from './lib/wait.mjs';

// The older generation is not told what the node takes at once, and posts all that waits.
const OLDER = ['--eio3', '--max-payload', '1MiB'];
const GENERATIONS = [['socket.io-client 4', io4, []], ['socket.io-client 2', io2, OLDER]];
const TRANSPORTS = [['websocket'], ['polling'], ['polling', 'websocket']];
const MANY = 500;

const nodes = new Map();
const open = new Set();
before(async () => {
  for (const [generation, , flags] of GENERATIONS) nodes.set(generation, await MainstayNode.start(flags));
});
afterEach(() => {
  open.forEach((socket) => socket.close());
  open.clear();
});
after(() => Promise.all([...nodes.values()].map((node) => node.stop())));

for (const [generation, io] of GENERATIONS) {
  for (const transports of TRANSPORTS) {
    const way = transports.join(' that upgrades to ');

    test(`${generation} by ${way} joins, publishes and hears, in order`, async () => {
      const node = nodes.get(generation);
      const other = await connect(node, io4, ['websocket']);
      assert.deepEqual(await ask(other, 'join', { room: 'r' }), { ok: true, room: 'r' });
      const socket = await connect(node, io, transports);
      assert.deepEqual(await ask(socket, 'join', { room: 'r' }), { ok: true, room: 'r' });
      const [here, there] = [hears(socket), hears(other)];
      // Begun at once, so that the upgrade comes in the middle of it.
      for (let n = 0; n < MANY; n += 1) {
        socket.emit('publish', { room: 'r', data: n });
        other.emit('publish', { room: 'r', data: n });
        if (n % 20 === 0) await new Promise(setImmediate);
      }
      await until('all messages', () => here.length >= MANY && there.length >= MANY);
      const all = Array.from({ length: MANY }, (_, n) => n);
      assert.deepEqual(here.map(({ data }) => data), all);
      assert.deepEqual(there.map(({ data }) => data), all);
      await until('the transport', () => socket.io.engine.transport.name === transports.at(-1));
    });

    test(`${generation} by ${way} gets text and bytes as they were, and a reason for a bad request`, async () => {
      const node = nodes.get(generation);
      const [socket, other] = [await connect(node, io, transports), await connect(node, io, transports)];
      for (const one of [socket, other]) assert.equal((await ask(one, 'join', { room: 'q' })).ok, true);
      const heard = hears(other);
      const data = { text: 'hé 😀 \u2028"\\n', bytes: Buffer.from([0, 1, 254, 255]), long: 'ü'.repeat(5000), list: [1, null] };
      assert.equal((await ask(socket, 'publish', { room: 'q', data })).ok, true);
      await until('the message', () => heard.length > 0);
      assert.deepEqual({ ...heard[0].data, bytes: Buffer.from(heard[0].data.bytes) }, data);
      const answer = await ask(socket, 'publish', { room: 'elsewhere', data: 1 });
      assert.equal(answer.ok, false);
      assert.match(answer.error, /join elsewhere/);
    });
  }
}

for (const transports of [['websocket'], ['polling']]) {
  test(`a client by ${transports} that answers its pings stays, and one that falls silent does not`, async (t) => {
    const quick = await MainstayNode.start(['--ping-interval', '200ms', '--ping-timeout', '200ms']);
    t.after(() => quick.stop());
    const socket = await connect(quick, io4, transports);
    let pings = 0;
    socket.io.on('ping', () => (pings += 1));
    await until('five pings', () => pings >= 5);
    assert.equal(socket.connected, true);
    // Takes the client's answer away, as a network that swallows packets does.
    socket.io.engine._sendPacket = () => {};
    const reason = await event(socket, 'disconnect');
    assert.match(reason, /^(transport close|transport error)$/);
  });

  test(`after SIGTERM clients by ${transports} are let go and the node exits 0`, async (t) => {
    const ending = await MainstayNode.start(['--drain', '1s']);
    t.after(() => ending.stop());
    const sockets = await Promise.all(Array.from({ length: 5 }, () => connect(ending, io4, transports)));
    const left = sockets.map((socket) => event(socket, 'disconnect'));
    ending.child.signal('SIGTERM');
    await Promise.all(left);
    const how = await within(ending.child.ended, () => ending.child.fault('the node ends').message);
    assert.deepEqual(how, { code: 0, signal: null }, ending.child.tail());
  });
}

test('a client of the older generation is refused where it is not switched on', async (t) => {
  const strict = await MainstayNode.start([]);
  t.after(() => strict.stop());
  for (const transports of [['websocket'], ['polling']]) {
    const socket = io2(strict.url, { transports, forceNew: true, reconnection: false });
    open.add(socket);
    await event(socket, 'connect_error');
  }
});

test('pages of the origins that may connect may poll, and others may not', async (t) => {
  const strict = await MainstayNode.start(['--origin', 'https://app.example']);
  t.after(() => strict.stop());
  const handshake = `${strict.url}/socket.io/?EIO=4&transport=polling`;
  const mine = await fetch(handshake, { headers: { origin: 'https://app.example' } });
  assert.equal(mine.status, 200);
  assert.equal(mine.headers.get('access-control-allow-origin'), 'https://app.example');
  assert.equal(mine.headers.get('access-control-allow-credentials'), 'true');
  const preflight = await fetch(handshake, { method: 'OPTIONS', headers: { origin: 'https://app.example' } });
  assert.equal(preflight.status, 204);
  const strange = await fetch(handshake, { headers: { origin: 'https://evil.example' } });
  assert.equal(strange.status, 403);
  assert.notEqual(strange.headers.get('access-control-allow-origin'), 'https://evil.example');
});

async function connect({ url }, io, transports) {
  const socket = io(url, { transports, forceNew: true, reconnection: false });
  open.add(socket);
  await event(socket, 'connect', 'connect_error');
  return socket;
}

/** The first argument of the next `name`; a failure when `fault` comes first. */
function event(socket, name, fault) {
  const comes = new Promise((resolve, reject) => {
    socket.once(name, resolve);
    if (fault) socket.once(fault, (error) => reject(error instanceof Error ? error : new Error(error)));
  });
  return within(comes, name);
}

function ask(socket, name, fields) {
  return within(new Promise((resolve) => socket.emit(name, fields, resolve)), `the answer to ${name}`);
}

function hears(socket) {
  const heard = [];
  socket.on('message', (message) => heard.push(message));
  return heard;
}
