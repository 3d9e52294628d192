// Cases of the socket.io server's own tests (close, connection-state-recovery, handshake, namespaces, socket) that can
// be seen from outside and that no other file here has, in code of our own. All pass; what ends a connection here ends
// it in Node.js, too.
//
// Not checked, as only an application inside the server can see them: middlewares, listeners for any event, events of
// the server's own (`connection`, `disconnecting`, `new_namespace`), reserved names when the server emits. Not there to
// be checked: the client bundle, namespaces made by a pattern.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { after, afterEach, before, test } from 'node:test';

import { io } from 'socket.io-client';

import { MainstayNode } from './lib/mainstay-node.mjs';
import { Peer } from './lib/peers.mjs';
import { until, within } from './lib/wait.mjs';
import { Polling, Wire, ask } from './lib/wire.mjs';

const AGAIN = { reconnection: true, reconnectionDelay: 10 };
const ATTACHED = '["x",{"_placeholder":true,"num":0}]';
/** What a client must not say once it is connected. */
const AGAINST = [
  ['an error packet', '44["handle me please"]'],
  ['an attachment that nothing announced', Buffer.from([1, 2, 3])],
  ['an empty packet with attachments', '45'],
  ['a packet whose number of attachments is none', '45woooot'],
  ['text where an attachment is due', `451-${ATTACHED}`, '42["x"]'],
  ['an attachment that the packet has no place for', '451-["x",{"_placeholder":true,"num":7}]', Buffer.from([1])],
  ['an event with a reserved name', '42["connect"]'],
];

let node;
let peer;
const open = new Set();
before(async () => {
  node = await MainstayNode.start(['--namespaces', '/custom', '--drain', '0s']);
  peer = await Peer.start('rust', { adapter: 'memory', redis: { urls: '', words: [] } });
  peer.url = `http://127.0.0.1:${peer.port}`;
});
afterEach(() => {
  open.forEach((one) => one.close());
  open.clear();
});
after(async () => {
  await node?.stop();
  await peer?.stop();
});

for (const [what, packet, isConnected] of [
  ['says CONNECT twice', '40', true],
  ['says something before CONNECT', '42["some event"]', false],
  ['says what cannot be read', '4abc', true],
]) {
  test(`a polling client that ${what} is told the end in order`, async () => {
    const session = await Polling.open(node);
    if (isConnected) await session.post('40');
    await session.post(packet);
    if (isConnected) assert.match((await session.get()).text, /^40\{/);
    assert.deepEqual(await session.get(), { status: 200, text: '6\x1e1' });
    assert.equal((await session.get()).status, 400);
  });
}

test('what a connected client must not say ends its connection, and no other', async () => {
  const other = await connect(node.url);
  for (const [what, ...frames] of AGAINST) {
    const wire = kept(await Wire.connect(node));
    wire.say(...frames);
    await within(wire.closed, `a close after ${what}`);
    assert.deepEqual(wire.frames, [], what);
  }
  assert.equal((await asks(other, 'join', { room: 'after' })).ok, true);
});

test('a client whose connection broke gets what it missed, in order, and is in its rooms', async () => {
  const [lost, other] = [await connect(node.url, AGAIN), await connect(node.url)];
  for (const one of [lost, other]) await asks(one, 'join', { room: 'kept' });
  const heard = hears(lost, 'message');
  other.emit('publish', { room: 'kept', data: 0 });
  await until('the first event', () => heard.length === 1);
  const { id } = lost;
  lost.io.engine.close();
  for (let n = 1; n < 10; n += 1) await asks(other, 'publish', { room: 'kept', data: n });
  await until('it is back', () => lost.connected);
  await asks(other, 'publish', { room: 'kept', data: 10 });
  await until('all events', () => heard.length >= 11);
  assert.deepEqual(heard.map(([{ data }]) => data), [...Array(11).keys()]);
  assert.deepEqual([lost.recovered, lost.id], [true, id]);
});

test('a session that is not there, or not claimed in order, is not taken up', async () => {
  const first = kept(await Wire.connect(node));
  assert.match(await first.answer('421["join",{"room":"claimed"}]'), /^431/);
  first.close();
  const claims = [{ pid: 'foo', offset: 'bar' }, { pid: first.pid, offset: 123 }, { pid: first.pid, offset: null }];
  for (const claim of claims) {
    const wire = kept(await Wire.connect(node, JSON.stringify(claim)));
    assert.notEqual(wire.sid, first.sid);
    assert.ok(wire.pid && wire.pid !== claim.pid);
    assert.match(await wire.answer('421["presence",{"room":"claimed"}]'), /join claimed/);
  }
});

test('a client that connects again by hand hears an event once', async () => {
  const [socket, other] = [await connect(node.url), await connect(node.url)];
  const heard = hears(socket, 'message');
  for (let n = 0; n < 3; n += 1) {
    socket.io.engine.close();
    await until('it has noticed', () => !socket.connected);
    socket.connect();
    await until('it is connected', () => socket.connected);
  }
  for (const one of [socket, other]) await asks(one, 'join', { room: 'again' });
  for (const data of ['one', 'last']) await asks(other, 'publish', { room: 'again', data });
  await until('the last event', () => heard.some(([{ data }]) => data === 'last'));
  assert.deepEqual(heard.map(([{ data }]) => data), ['one', 'last']);
});

test('what a client says while it is away is answered when it is back', async () => {
  const socket = await connect(node.url, AGAIN);
  socket.io.engine.close();
  await until('it has noticed', () => !socket.connected);
  assert.deepEqual(await asks(socket, 'join', { room: 'later' }), { ok: true, room: 'later' });
});

test('namespaces share a connection, and its end is the end of each', async () => {
  const main = await connect(node.url);
  const custom = kept(main.io.socket('/custom'));
  await until('both are connected', () => custom.connected);
  assert.notEqual(main.id, custom.id);
  const ends = [main, custom].map((socket) => within(once(socket, 'disconnect'), 'an end'));
  main.io.engine.close();
  for (const [reason] of await Promise.all(ends)) assert.equal(reason, 'forced close');
  await until('the node counts neither', async () => /^websocket_connections 0$/m.test(await metrics(node)));
});

test('a namespace that is not there is an error, and leaves the others alone', async () => {
  const main = await connect(node.url);
  const nowhere = kept(main.io.socket('/doesnotexist'));
  const refused = within(once(nowhere, 'connect_error'), 'a refusal');
  assert.equal((await refused)[0].message, 'Invalid namespace');
  assert.equal((await asks(main, 'join', { room: 'still' })).ok, true);
});

test('a server that ends a connection from one namespace ends it for all', async () => {
  const main = await connect(peer.url);
  const admin = kept(main.io.socket('/admin'));
  await until('both are connected', () => admin.connected);
  const ends = [main, admin].map((socket) => within(once(socket, 'disconnect'), 'an end'));
  await peer.call('disconnect', { nsp: '/admin', rooms: [admin.id], close: true });
  for (const [reason] of await Promise.all(ends)) assert.equal(reason, 'io server disconnect');
});

test('the query and what a client sends to authenticate itself are in its handshake, for every namespace', async () => {
  const socket = await connect(`${peer.url}/admin`, { query: { key1: 1, key2: '&=bb' }, auth: { key3: '&=cc' } });
  const [{ handshake }] = await peer.call('fetchSockets', { nsp: '/admin', rooms: [socket.id] });
  assert.deepEqual([handshake.query.key1, handshake.query.key2, handshake.query.EIO], ['1', '&=bb', '4']);
  assert.deepEqual(handshake.auth, { key3: '&=cc' });
});

for (const transports of [['websocket'], ['polling']]) {
  test(`data of every kind arrives as it was by ${transports}, also when it is large`, async (t) => {
    const own = await MainstayNode.start(['--max-payload', '1000000B', '--drain', '0s']);
    t.after(() => own.stop());
    const [one, other] = [await connect(own.url, { transports }), await connect(own.url, { transports })];
    for (const socket of [one, other]) await asks(socket, 'join', { room: 'large' });
    const heard = hears(other, 'message');
    const large = randomBytes(200_000);
    const list = Array.from({ length: 10_000 }, (_, n) => ({ n, text: 'utf8 — 😀' }));
    const data = [1, large, '3', [4], Buffer.from('asdf'), [large, 'swag', { deep: [Buffer.alloc(0)] }], null, list];
    assert.equal((await asks(one, 'publish', { room: 'large', data })).ok, true);
    await until('the message', () => heard.length > 0);
    assert.deepEqual(heard[0][0].data, data);
  });
}

test('a message that is too long ends a WebSocket with 1009 and is refused by polling with 413', async () => {
  const long = `42["x","${'y'.repeat(16 * 1024)}"]`;
  const wire = kept(await Wire.connect(node));
  wire.say(long);
  assert.equal(await within(wire.closed, 'a close'), 1009);
  const session = await Polling.open(node);
  assert.equal((await session.post(long)).status, 413);
  assert.equal((await session.post('40')).status, 200);
  assert.match((await session.get()).text, /^40\{/);
});

test('a volatile event reaches a client that waits, at most once and in its place', async () => {
  const socket = await connect(peer.url);
  const heard = [];
  socket.onAny((event, ...args) => heard.push([event, ...args]));
  // One that comes while something else is being written may be dropped: then the next is heard.
  let sent = 0;
  await until('a volatile event', async () => {
    sent += 1;
    await peer.call('emit', { event: 'volatile', args: [sent, { $bin: '010203' }], volatile: true });
    return heard.length > 0;
  });
  await peer.call('emit', { event: 'end' });
  await until('the last event', () => heard.at(-1)[0] === 'end');
  const numbers = heard.slice(0, -1).map(([, number]) => number);
  assert.deepEqual(numbers, [...new Set(numbers)].sort((one, other) => one - other));
  assert.ok(numbers.every((number) => number >= 1 && number <= sent));
  const expected = numbers.map((number) => ['volatile', number, Buffer.from([1, 2, 3])]);
  assert.deepEqual(heard, [...expected, ['end']]);
});

test('clients that go while they come leave nothing behind', async (t) => {
  const own = await MainstayNode.start(['--recovery', '0s', '--drain', '0s']);
  t.after(() => own.stop());
  const words = ['40', '421["join",{"room":"r"}]', '41'];
  for (let n = 0; n < 20; n += 1) {
    const wire = kept(await Wire.open(own));
    wire.say(...words.slice(0, n % 4));
    wire.close();
  }
  const isOver = (text) => /^websocket_connections 0$/m.test(text) && /^mainstay_node_rooms 0$/m.test(text);
  await until('nothing is left', async () => isOver(await metrics(own)));
  const late = kept(await Wire.connect(own));
  assert.equal(await late.answer(words[1]), '431[{"ok":true,"room":"r"}]');
});

async function connect(url, options = {}) {
  const socket = kept(io(url, { transports: ['websocket'], forceNew: true, reconnection: false, ...options }));
  await within(once(socket, 'connect'), 'a connection');
  return socket;
}

function kept(one) {
  open.add(one);
  return one;
}

function asks(socket, name, fields) {
  return within(socket.emitWithAck(name, fields), `an answer to ${name}`);
}

function hears(socket, name) {
  const heard = [];
  socket.on(name, (...args) => heard.push(args));
  return heard;
}

async function metrics(own) {
  return (await ask(`${own.url}/metrics`)).text;
}
