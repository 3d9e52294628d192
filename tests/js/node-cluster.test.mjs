// A Rust node in a cluster of Node.js servers, and of its own kind: every operation, from one server to the other, with
// each adapter. The caller is named first.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';

import { Emitter } from '@socket.io/redis-emitter';
import { createClient } from 'redis';

import { Cluster, Peer, Single } from './lib/peers.mjs';
import { until } from './lib/wait.mjs';

const PAIRS = [['rust', 'node'], ['node', 'rust'], ['rust', 'rust']];
const ADAPTERS = ['pubsub', 'sharded', 'streams'];
const LONG = 'a-room-of-20-letters';

for (const adapter of ADAPTERS) {
  for (const [here, there] of PAIRS) {
    describe(`${adapter}: from ${here} to ${there}`, () => matrix(adapter, here, there));
  }
}

describe('pubsub: from @socket.io/redis-emitter to rust', () => {
  let redis, rust, client, emitter, inside, outside;

  before(async () => {
    redis = await Single.start();
    rust = await Peer.start('rust', { adapter: 'pubsub', redis });
    client = createClient({ socket: { path: redis.path } });
    client.on('error', () => {});
    await client.connect();
    emitter = new Emitter(client);
    [inside, outside] = [await rust.client(['room']), await rust.client()];
  });

  after(async () => {
    [inside, outside].forEach((one) => one?.close());
    client?.destroy();
    await rust?.stop();
    await redis?.stop();
  });

  test('its events, moves and farewells reach the clients', async () => {
    emitter.to('room').emit('e', 1, Buffer.from([1]));
    emitter.except('room').emit('e', 2);
    emitter.emit('last');
    await until('both have all', () => [inside, outside].every(({ got }) => got.at(-1)?.[0] === 'last'));
    assert.deepEqual(inside.take(), [['e', 1, Buffer.from([1])], ['last']]);
    assert.deepEqual(outside.take(), [['e', 2], ['last']]);
    emitter.in('room').socketsJoin('new');
    emitter.in('new').socketsLeave('room');
    await until('it has moved', async () => {
      const [socket] = await rust.call('fetchSockets', { rooms: ['new'] });
      return socket?.id === inside.id && !socket.rooms.includes('room');
    });
    emitter.serverSideEmit('hello', 'from the emitter');
    await until('the server has heard it', () => rust.heard.length > 0);
    assert.deepEqual(rust.heard, [['hello', 'from the emitter']]);
    const gone = new Promise((resolve) => inside.socket.once('disconnect', resolve));
    emitter.in('new').disconnectSockets(true);
    assert.equal(await gone, 'io server disconnect');
  });
});

function matrix(adapter, here, there) {
  let redis, a, b, a1, b1, b2, clients;

  before(async () => {
    redis = adapter === 'sharded' ? await Cluster.start() : await Single.start();
    a = await Peer.start(here, { adapter, redis, name: 'a' });
    b = await Peer.start(there, { adapter, redis, name: 'b' });
    a1 = await a.client(['room1'], { data: { user: 'a1' } });
    b1 = await b.client(['room1', 'room2', 'x#y', LONG], { data: { user: 'b1', bytes: { $bin: '0102' } } });
    b2 = await b.client(['room2']);
    clients = { a1, b1, b2 };
    // A subscription of a Node.js server may be on its way when its client has its answer.
    await until('the rooms are known', async () => {
      for (const room of ['room1', 'room2', 'x#y', LONG]) await a.call('emit', { rooms: [room], event: room });
      return ['room1', 'room2', 'x#y', LONG].every((room) => b1.got.some(([event]) => event === room));
    });
    await settle();
  });

  after(async () => {
    Object.values(clients ?? {}).forEach((client) => client.close());
    await Promise.all([a, b].map((peer) => peer?.stop()));
    await redis?.stop();
  });

  /** Forgets what came so far, and all that was on its way. */
  async function settle() {
    const open = Object.values(clients).filter((client) => client.socket.connected);
    const mark = Math.random();
    await a.call('emit', { event: 'mark', args: [mark] });
    await until('everybody has the mark', () => open.every((c) => c.got.some(([e, m]) => e === 'mark' && m === mark)));
    const took = Object.fromEntries(Object.entries(clients).map(([name, client]) => [name, client.take()]));
    return Object.fromEntries(Object.entries(took).map(([name, got]) => [name, got.filter(([event]) => event !== 'mark')]));
  }

  /** Emits, waits until those who are meant have it, and checks that nobody else has, and nobody twice. */
  async function emitted(words, meant, args = []) {
    await a.call('emit', { event: 'e', args, ...words });
    await until(`${meant} have the event`, () => meant.every((name) => clients[name].got.some(([event]) => event === 'e')));
    const got = await settle();
    for (const name of Object.keys(clients)) {
      assert.equal(got[name].filter(([event]) => event === 'e').length, meant.includes(name) ? 1 : 0, name);
    }
    return got;
  }

  test('a broadcast reaches those who are meant, once', async () => {
    await emitted({}, ['a1', 'b1', 'b2']);
    await emitted({ rooms: ['room1'] }, ['a1', 'b1']);
    await emitted({ rooms: ['room1', 'room2'] }, ['a1', 'b1', 'b2']);
    await emitted({ except: ['room1'] }, ['b2']);
    await emitted({ rooms: ['room2'], except: ['room1'] }, ['b2']);
    await emitted({ rooms: [b1.id] }, ['b1']);
    await emitted({ rooms: ['x#y'] }, ['b1']);
    await emitted({ rooms: [LONG] }, ['b1']);
    await emitted({ rooms: ['nobody'] }, []);
    await emitted({ local: true }, ['a1']);
  });

  test('arguments arrive as they were', async () => {
    const args = [1, -2.5, 0.6484929865513837, 'héllo 😀', null, true, [], { a: { b: [1, 'x'] } }, 9007199254740991, ''];
    const got = await emitted({}, ['a1', 'b1', 'b2'], args);
    for (const client of ['a1', 'b1', 'b2']) assert.deepEqual(got[client], [['e', ...args]]);
  });

  test('bytes arrive as bytes, however deep', async () => {
    const got = await emitted({ rooms: ['room1'] }, ['a1', 'b1'], [{ $bin: '00ff01' }, { deep: [{ $bin: '' }, 7] }]);
    for (const client of ['a1', 'b1']) {
      assert.deepEqual(got[client], [['e', Buffer.from('00ff01', 'hex'), { deep: [Buffer.alloc(0), 7] }]]);
    }
  });

  test('answers come from the clients of both, also with bytes', async () => {
    [a1.answer, b1.answer, b2.answer] = [['a'], [{ n: 1 }, 'ignored'], ['b2']];
    const { answers, fault } = await a.call('emitWithAck', { event: 'q' });
    assert.equal(fault, undefined);
    assert.deepEqual(answers.map((answer) => JSON.stringify(answer)).sort(), ['"a"', '"b2"', '{"n":1}']);
    b1.answer = [Buffer.from([1, 2])];
    assert.deepEqual(await a.call('emitWithAck', { event: 'q', rooms: [b1.id] }), { answers: [{ $bin: '0102' }] });
    assert.deepEqual(await a.call('emitWithAck', { event: 'q', rooms: ['nobody'] }), { answers: [] });
    await settle();
  });

  test('a silent client leaves the answers partial', async () => {
    [a1.answer, b1.answer, b2.answer] = [['a'], ['b1'], undefined];
    const { answers, fault } = await a.call('emitWithAck', { event: 'q', timeout: 500 });
    assert.equal(fault, 'operation has timed out');
    assert.deepEqual(answers.sort(), ['a', 'b1']);
    await settle();
  });

  test('the sockets of both are told, with rooms and data', async () => {
    const sockets = await a.call('fetchSockets', { rooms: ['room1'] });
    assert.deepEqual(sockets.map((socket) => socket.id).sort(), [a1.id, b1.id].sort());
    const facts = sockets.find((socket) => socket.id === b1.id);
    assert.deepEqual(facts.rooms.sort(), [b1.id, 'room1', 'room2', 'x#y', LONG].sort());
    assert.equal(facts.data.user, 'b1');
    const keys = ['headers', 'time', 'address', 'xdomain', 'secure', 'issued', 'url', 'query', 'auth'];
    assert.deepEqual(Object.keys(facts.handshake), keys);
    assert.equal((await a.call('fetchSockets')).length, 3);
  });

  test('sockets join and leave wherever they are', async () => {
    const members = async () => (await b.call('fetchSockets', { rooms: ['new'] })).map((socket) => socket.id).sort();
    await a.call('join', { rooms: ['room2'], except: ['room1'], into: ['new', 'newer'] });
    await until('b2 is in the room', async () => (await members()).includes(b2.id));
    assert.deepEqual(await members(), [b2.id]);
    await emitted({ rooms: ['newer'] }, ['b2']);
    await a.call('leave', { rooms: ['newer'], into: ['new'] });
    await until('b2 has left the room', async () => !(await members()).includes(b2.id));
  });

  test('the other server hears events, and answers', async () => {
    await a.call('serverSideEmit', { event: 'hello', args: ['x', { y: 1 }] });
    await until('b has heard it', () => b.heard.some(([event]) => event === 'hello'));
    assert.deepEqual(b.heard.find(([event]) => event === 'hello'), ['hello', 'x', { y: 1 }]);
    assert.deepEqual(await a.call('serverSideEmitWithAck', { event: 'question', args: [2] }), { answers: ['b'] });
    assert.deepEqual(a.heard, []);
    assert.equal(await a.call('serverCount'), 2);
    assert.equal(await b.call('serverCount'), 2);
  });

  test('namespaces keep apart', async () => {
    const admin = await b.client([], { nsp: '/admin' });
    await a.call('emit', { nsp: '/admin', event: 'e', args: ['for admins'] });
    await until('the admin has it', () => admin.got.length > 0);
    assert.deepEqual(admin.take(), [['e', 'for admins']]);
    assert.deepEqual(await settle(), { a1: [], b1: [], b2: [] });
    admin.close();
  });

  test('sockets are disconnected wherever they are', async () => {
    const gone = new Promise((resolve) => b2.socket.once('disconnect', resolve));
    await a.call('disconnect', { rooms: [b2.id], close: true });
    assert.equal(await gone, 'io server disconnect');
    await emitted({}, ['a1', 'b1']);
  });
}
