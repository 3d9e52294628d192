// What breaks in a cluster, and what its clients notice: connections that end, nodes that are killed, Redis that goes away.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { createClient } from 'redis';
import { io } from 'socket.io-client';
import WebSocket from 'ws';

import { Peer, Single } from './lib/peers.mjs';
import { until } from './lib/wait.mjs';

/** Clients of a server that is killed, and what they miss before they come back: more in all than Redis lets wait. */
const [CLIENTS, MISSED] = [Number(process.env.STORM_CLIENTS ?? 250), 300];

/** A client that speaks the protocol itself, so that it can come back to any server with what it remembers. */
class Raw {
  static async open(peer, auth = '') {
    const raw = new Raw(new WebSocket(`ws://127.0.0.1:${peer.port}/socket.io/?EIO=4&transport=websocket`));
    await until('a raw client is open', () => raw.frames.length > 0);
    raw.socket.send(`40${auth}`);
    await until('a raw client is connected', () => raw.ids);
    return raw;
  }

  constructor(socket) {
    Object.assign(this, { socket, frames: [], events: [], before: undefined, ids: undefined, offset: undefined });
    socket.on('message', (data) => this.#take(String(data)));
    socket.on('error', () => {});
  }

  #take(frame) {
    this.frames.push(frame);
    if (frame === '2') this.socket.send('3');
    if (frame.startsWith('40')) {
      this.ids = JSON.parse(frame.slice(2));
      this.before = this.events.length;
    }
    if (!frame.startsWith('42')) return;
    const event = JSON.parse(frame.slice(2));
    this.offset = event.pop();
    this.events.push(event);
  }

  /** What it shows to go on elsewhere. */
  get claim() {
    return JSON.stringify({ pid: this.ids.pid, offset: this.offset });
  }

  async join(room) {
    this.socket.send(`421["join","${room}"]`);
    await until('a raw client is in its room', () => this.frames.some((frame) => frame.startsWith('431')));
  }
}

/** A Redis and servers, ended with the test. */
async function cluster(t, adapter, kinds, recovery = 60) {
  const redis = await Single.start();
  t.after(() => redis.stop());
  const peers = [];
  for (const [place, kind] of kinds.entries()) {
    const peer = await Peer.start(kind, { adapter, redis, recovery, name: `${kind}${place}` });
    t.after(() => peer.stop());
    peers.push(peer);
  }
  return { redis, peers };
}

/** A connection to ask Redis itself. */
async function asking(t, redis) {
  const client = createClient({ socket: { path: redis.path } });
  client.on('error', () => {}); // the server ends before it does
  await client.connect();
  t.after(() => client.destroy());
  return client;
}

/** Emits a first event until the client has it, so that it has an offset. */
async function seen(peer, raw) {
  await peer.call('emit', { rooms: ['room'], event: 'seen' });
  await until('the first event has come', () => raw.offset);
}

const numbers = (raw) => raw.events.filter(([event]) => event === 'missed').map(([, number]) => number);

describe('a client goes on on another server and misses nothing', () => {
  for (const [first, second] of [['rust', 'rust'], ['rust', 'node'], ['node', 'rust']]) {
    test(`its connection broke: from ${first} to ${second}`, async (t) => {
      const { peers: [a, b] } = await cluster(t, 'streams', [first, second]);
      const raw = await Raw.open(a);
      await raw.join('room');
      await seen(b, raw);
      raw.socket.terminate();
      await until('its server has noticed', async () => (await a.call('local')) === 0);
      for (let n = 0; n < 50; n += 1) await [a, b][n % 2].call('emit', { rooms: ['room'], event: 'missed', args: [n] });
      await a.call('emit', { rooms: ['elsewhere'], event: 'missed', args: ['not for it'] });
      const back = await Raw.open(b, raw.claim);
      assert.deepEqual(back.ids, raw.ids);
      // A server sends its own events when it reads them back, so those of both are in one order.
      assert.deepEqual(numbers(back).sort((x, y) => x - y), [...Array(50).keys()]);
      assert.equal(back.before, 50);
      await a.call('emit', { rooms: ['room'], event: 'missed', args: ['after'] });
      await until('it is in its room again', () => numbers(back).includes('after'));
    });
  }

  for (const second of ['rust', 'node']) {
    test(`its server was killed without a word: from rust to ${second}`, async (t) => {
      const { redis, peers: [a, b] } = await cluster(t, 'streams', ['rust', second]);
      const raw = await Raw.open(a);
      await raw.join('room');
      await seen(b, raw);
      const client = await asking(t, redis);
      await until('its session is kept', async () => {
        const kept = await client.get(`sio:session:${raw.ids.pid}`);
        return kept !== null && Buffer.from(kept, 'base64').includes('room');
      });
      await a.child.stop('SIGKILL');
      for (let n = 0; n < 50; n += 1) await b.call('emit', { rooms: ['room'], event: 'missed', args: [n] });
      const back = await Raw.open(b, raw.claim);
      assert.deepEqual(back.ids, raw.ids);
      assert.deepEqual(numbers(back), [...Array(50).keys()]);
    });
  }

  test('one that said good-bye leaves nothing behind', async (t) => {
    const { redis, peers: [a] } = await cluster(t, 'streams', ['rust']);
    const raw = await Raw.open(a);
    const client = await asking(t, redis);
    await until('its session is kept', async () => (await client.exists(`sio:session:${raw.ids.pid}`)) === 1);
    raw.socket.send('41');
    await until('its session is gone', async () => (await client.exists(`sio:session:${raw.ids.pid}`)) === 0);
  });
});

describe('many come back, or with much that they have missed', () => {
  test('when a server is killed every client of it goes on on the other and misses nothing', async (t) => {
    const { redis, peers: [a, b] } = await cluster(t, 'streams', ['rust', 'rust']);
    const client = await asking(t, redis);
    const clients = await Promise.all(Array.from({ length: CLIENTS }, () => Raw.open(a)));
    t.after(() => clients.forEach((raw) => raw.socket.terminate()));
    await Promise.all(clients.map((raw) => raw.join('room')));
    await b.call('emit', { rooms: ['room'], event: 'seen' });
    await until('all have seen the first event', () => clients.every((raw) => raw.offset));
    await until('every session is kept', async () => {
      const kept = await client.mGet(clients.map((raw) => `sio:session:${raw.ids.pid}`));
      return kept.every((session) => session !== null && Buffer.from(session, 'base64').includes('room'));
    });
    await a.child.stop('SIGKILL');
    const text = 'x'.repeat(500);
    const emit = (n) => b.call('emit', { rooms: ['room'], event: 'missed', args: [n, text] });
    for (let n = 0; n < MISSED; n += 100) await Promise.all(Array.from({ length: 100 }, (_, i) => emit(n + i)));
    // While they come back, more is said.
    const back = Promise.all(clients.map((raw) => Raw.open(b, raw.claim)));
    for (let n = MISSED; n < 2 * MISSED; n += 1) await emit(n);
    const restored = await back;
    t.after(() => restored.forEach((raw) => raw.socket.terminate()));
    const same = restored.filter((raw, place) => raw.ids.pid === clients[place].ids.pid);
    assert.equal(same.length, CLIENTS);
    await until('all have everything', () => restored.every((raw) => numbers(raw).length >= 2 * MISSED));
    // Those that were emitted together are in any order, the same for all.
    const order = numbers(restored[0]);
    assert.deepEqual([...order].sort((x, y) => x - y), [...Array(2 * MISSED).keys()]);
    for (const raw of restored) assert.deepEqual(numbers(raw), order);
  });

  for (const transport of ['websocket', 'polling']) {
    test(`${transport}: one that missed more than its queue holds gets all of it, once`, async (t) => {
      const { peers: [a] } = await cluster(t, 'streams', ['rust']);
      const options = { transports: [transport], forceNew: true, reconnection: false };
      const socket = io(`http://127.0.0.1:${a.port}`, options);
      t.after(() => socket.disconnect());
      const got = [];
      let connects = 0;
      socket.on('missed', (number) => got.push(number));
      socket.on('connect', () => (connects += 1));
      const seen = new Promise((resolve) => socket.once('seen', resolve));
      await until('it is connected', () => socket.connected);
      await socket.emitWithAck('join', 'room');
      await a.call('emit', { rooms: ['room'], event: 'seen' });
      await seen;
      socket.io.engine.close();
      await until('its server has noticed', async () => (await a.call('local')) === 0);
      const text = 'x'.repeat(300);
      for (let n = 0; n < 6000; n += 200) {
        const some = Array.from({ length: 200 }, (_, i) => n + i);
        await Promise.all(some.map((number) => a.call('emit', { rooms: ['room'], event: 'missed', args: [number, text] })));
      }
      socket.connect();
      await until('it is back', () => socket.connected);
      assert.equal(socket.recovered, true);
      await until('it has all', () => got.length >= 6000);
      await a.call('emit', { rooms: ['room'], event: 'missed', args: ['after'] });
      await until('it is in its room', () => got.at(-1) === 'after');
      assert.deepEqual(got.slice(0, -1).sort((x, y) => x - y), [...Array(6000).keys()]);
      assert.equal(connects, 2);
    });
  }
});

describe('Redis is killed and comes back', () => {
  for (const adapter of ['pubsub', 'streams']) {
    test(`${adapter}: local clients go on, what is not sent is said, and the cluster heals`, async (t) => {
      const { redis, peers: [a, b] } = await cluster(t, adapter, ['rust', 'rust'], 0);
      const [here, there] = [await a.client(['room']), await b.client(['room'])];
      t.after(() => [here, there].forEach((client) => client.close()));
      await a.call('emit', { rooms: ['room'], event: 'before' });
      await until('both have it', () => [here, there].every((client) => client.got.length > 0));
      [here, there].forEach((client) => client.take());
      await redis.kill();
      await until('the node knows', async () => !(await a.call('isUp')));
      await assert.rejects(a.call('emit', { rooms: ['room'], event: 'during' }), /cannot be reached/);
      await until('the local client has it', () => here.got.some(([event]) => event === 'during'));
      await redis.begin();
      await until('both nodes are back', async () => (await a.call('isUp')) && (await b.call('isUp')));
      assert.deepEqual(there.take(), []);
      await until('the other client hears again', async () => {
        await a.call('emit', { rooms: ['room'], event: 'after' });
        return there.got.some(([event]) => event === 'after');
      });
    });
  }
});
