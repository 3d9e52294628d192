// The Rust bus and a real Socket.IO server in one cluster, every operation in both directions, with each adapter of the
// Node.js packages.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { after, before, describe, test } from 'node:test';

import { createAdapter, createShardedAdapter } from '@socket.io/redis-adapter';
import { Emitter } from '@socket.io/redis-emitter';
import { createAdapter as createStreamsAdapter } from '@socket.io/redis-streams-adapter';
import { createClient } from 'redis';
import { Server } from 'socket.io';
import { io as connect } from 'socket.io-client';

import { Redis } from './lib/redis.mjs';
import { until, within } from './lib/wait.mjs';
import { WirePeer } from './lib/wire-peer.mjs';

const SID = 'rust-socket-id-00001';

/** A Socket.IO server with one client, and the Rust peer beside it. */
class Pair {
  static async start(redis, kind, prefix) {
    const pair = new Pair();
    Object.assign(pair, { prefix, kind });
    pair.redis = createClient({ socket: { path: redis.path } });
    pair.sub = pair.redis.duplicate();
    await Promise.all([pair.redis.connect(), pair.sub.connect()]);
    pair.http = createServer();
    pair.io = new Server(pair.http, {
      adapter: pair.adapter(),
      connectionStateRecovery: kind === 'streams' ? { maxDisconnectionDuration: 60_000 } : undefined,
    });
    pair.io.on('connection', (socket) => {
      socket.data = { name: 'node' };
      socket.join(['room', 'node-room', 42]);
    });
    pair.io.on('sse', (...args) => {
      const answer = args.at(-1);
      if (typeof answer === 'function') answer(['node', ...args.slice(0, -1)]);
      else pair.served?.(args);
    });
    await new Promise((resolve) => pair.http.listen(0, '127.0.0.1', resolve));
    pair.url = `http://127.0.0.1:${pair.http.address().port}`;
    pair.client = connect(pair.url, { transports: ['websocket'], forceNew: true });
    pair.events = [];
    pair.warmths = 0;
    pair.client.onAny((...args) => {
      if (args[0] === 'warm') pair.warmths += 1;
      else pair.events.push(args.filter((arg) => typeof arg !== 'function'));
    });
    pair.client.on('q', (said, answer) => answer(['node-client', said]));
    await within(new Promise((resolve) => pair.client.once('connect', resolve)), 'the client is connected');
    pair.peer = await WirePeer.start(`redis+unix://${redis.path}`, kind, prefix);
    await pair.peer.does('enter', { rooms: ['room', 'rust-room', 'x#y', 'abcdefghijklmnopqrst'] });
    await until('both are counted', async () => (await pair.io.of('/').adapter.serverCount()) === 2);
    // Until a first entry has come, the streams adapter of Node.js asks for what comes after its question, again and
    // again, and misses what is written between two of them.
    await until('Node.js reads', async () => {
      await pair.peer.does('emit', { data: ['warm'], rooms: ['node-room'] });
      return pair.warmths > 0;
    });
    return pair;
  }

  adapter() {
    const { prefix, redis, sub } = this;
    switch (this.kind) {
      case 'streams':
        return createStreamsAdapter(redis, { streamName: prefix, channelPrefix: prefix, blockTimeInMs: 200 });
      case 'pubsub':
        return createAdapter(redis, sub, { key: prefix });
      default: {
        const subscriptionMode = this.kind === 'sharded' ? 'dynamic' : this.kind;
        return createShardedAdapter(redis, sub, { channelPrefix: prefix, subscriptionMode });
      }
    }
  }

  /** What the client heard next under this name. */
  async clientHears(name) {
    const at = () => this.events.findIndex(([event]) => event === name);
    await until(() => `the client hears ${name}, it heard ${JSON.stringify(this.events)}`, () => at() >= 0);
    return this.events.splice(at(), 1)[0].slice(1);
  }

  async stop() {
    this.client.close();
    await this.peer.stop();
    await this.io.close();
    // Not cut off, as what the adapters still wait for would fail where nobody looks.
    await Promise.all([this.redis.close(), this.sub.close()]);
  }
}

let redis;
before(async () => (redis = await Redis.start()));
after(() => redis?.stop());

/** Without the offset that the streams adapter puts behind the arguments. */
const plain = (args, pair) => (pair.kind === 'streams' ? args.slice(0, -1) : args);

for (const kind of ['streams', 'pubsub', 'sharded', 'dynamic-private', 'static']) {
  describe(`with ${kind}`, () => {
    let pair;
    before(async () => (pair = await Pair.start(redis, kind, `fleet-${kind}`)));
    after(() => pair?.stop());

    test('broadcasts of the Rust node reach the clients of Node.js', async () => {
      const { peer } = pair;
      const odd = ['é \u2028 😀', 1.5, -33, 2 ** 40, null, { a: [true, {}] }];
      await peer.does('emit', { data: ['all', ...odd] });
      assert.deepEqual(plain(await pair.clientHears('all'), pair), odd);
      await peer.does('emit', { data: ['one', 1], rooms: ['room'] });
      assert.deepEqual(plain(await pair.clientHears('one'), pair), [1]);
      await peer.does('emit', { data: ['two', 2], rooms: ['room', 'node-room'] });
      assert.deepEqual(plain(await pair.clientHears('two'), pair), [2]);
      await peer.does('emit', { data: ['number', 3], rooms: [42] });
      assert.deepEqual(plain(await pair.clientHears('number'), pair), [3]);
      await peer.does('emit', { data: ['sid', 4], rooms: [pair.client.id] });
      assert.deepEqual(plain(await pair.clientHears('sid'), pair), [4]);
      await peer.does('emit', { data: ['bytes', { $bin: '00ff' }, { in: { $bin: 'cafe' } }], rooms: ['room'] });
      const [first, second] = await pair.clientHears('bytes');
      assert.deepEqual([first.toString('hex'), second.in.toString('hex')], ['00ff', 'cafe']);
      await peer.does('emit', { data: ['not you'], except: ['node-room'] });
      await peer.does('emit', { data: ['not you'], rooms: ['elsewhere'] });
      await peer.does('emit', { data: ['last'] });
      await pair.clientHears('last');
      assert.deepEqual(pair.events, []);
    });

    test('broadcasts of Node.js reach the sockets of the Rust node', async () => {
      const { io, peer } = pair;
      peer.heard.length = 0;
      const bytes = { type: 'Buffer', data: [0, 255] };
      const said = async () => (await peer.hears('broadcast')).data;
      io.emit('all', 'ü', 1.5, { a: [null, new Date(0)] });
      assert.deepEqual(await said(), ['all', 'ü', 1.5, { a: [null, '1970-01-01T00:00:00.000Z'] }]);
      io.to('rust-room').emit('one', 1);
      assert.deepEqual(await said(), ['one', 1]);
      io.to(['rust-room', 'room']).emit('two', 2);
      assert.deepEqual(await said(), ['two', 2]);
      io.to('x#y').emit('hash', 3);
      assert.deepEqual(await said(), ['hash', 3]);
      io.to('abcdefghijklmnopqrst').emit('long', 4);
      assert.deepEqual(await said(), ['long', 4]);
      io.to('rust-room').emit('bytes', Buffer.from([0, 255]), { in: Buffer.from([0, 255]) });
      assert.deepEqual(await said(), ['bytes', bytes, { in: bytes }]);
      io.volatile.emit('volatile');
      assert.deepEqual(await said(), ['volatile']);
      io.except('rust-room').emit('not you');
      io.to('node-room').emit('not you');
      io.emit('last');
      assert.deepEqual(await said(), ['last']);
      assert.deepEqual(peer.heard, []);
    });

    test('acknowledgements come from the clients of both', async () => {
      const asked = await pair.peer.does('ask', { data: ['q', 'who'], rooms: ['room'], timeout: 5000 });
      assert.deepEqual(asked, [['node-client', 'who']]);
      assert.deepEqual(await pair.peer.does('ask', { data: ['q', 'x'], rooms: ['nobody'], timeout: 5000 }), []);
      const answers = await pair.io.timeout(5000).emitWithAck('q', 'all');
      assert.deepEqual(answers.map(([name]) => name).sort(), ['node-client', SID]);
      const bytes = await pair.io.to('rust-room').timeout(5000).emitWithAck('q', Buffer.from([7]));
      assert.deepEqual(bytes[0][0], SID);
      assert.equal(Buffer.from(bytes[0][1]).toString('hex'), '07');
      assert.deepEqual(await pair.io.to('nobody').timeout(5000).emitWithAck('q', 'x'), []);
    });

    test('each fetches the sockets of the other and acts on them', async () => {
      const { io, peer, client } = pair;
      const fetched = await peer.does('fetch');
      assert.deepEqual(fetched.map(({ id, data }) => [id, data]), [[client.id, { name: 'node' }]]);
      assert.deepEqual(fetched[0].rooms.sort(), [client.id, 'room', 'node-room', '42'].sort());
      const sockets = await io.fetchSockets();
      assert.deepEqual(sockets.map(({ id }) => id).sort(), [client.id, SID].sort());
      const remote = sockets.find(({ id }) => id === SID);
      assert.deepEqual(remote.data, { name: 'rust' });
      assert.equal(remote.handshake.headers.host, 'rust');
      peer.heard.length = 0;
      remote.emit('direct', 1);
      assert.deepEqual((await peer.hears('broadcast')).data, ['direct', 1]);
      assert.deepEqual(await remote.timeout(5000).emitWithAck('q', 'single'), [SID, 'single']);
      remote.join('given');
      assert.deepEqual((await peer.hears('join')).rooms, ['given']);
      assert.equal((await io.in('given').fetchSockets()).length, 1);
      remote.leave('given');
      assert.deepEqual((await peer.hears('leave')).rooms, ['given']);
      remote.disconnect(false);
      assert.deepEqual(await peer.hears('disconnect'), { operation: 'disconnect', close: false, meant: true });
    });

    test('joins and leaves of the Rust node are carried out by Node.js, once', async () => {
      const { io, peer, client } = pair;
      const rooms = () => [...io.of('/').sockets.get(client.id).rooms];
      await peer.does('join', { rooms: ['node-room'], into: ['joined', 7] });
      await until('the socket has joined', () => rooms().includes('joined') && rooms().includes(7));
      await peer.does('leave', { rooms: [client.id], into: ['joined', 7] });
      await until('the socket has left', () => !rooms().includes('joined') && !rooms().includes(7));
    });

    test('events for servers reach them and are answered', async () => {
      const { io, peer } = pair;
      const served = new Promise((resolve) => (pair.served = resolve));
      await peer.does('serverSideEmit', { data: ['sse', 'a', { b: 1 }] });
      assert.deepEqual(await within(served, 'Node.js is served'), ['a', { b: 1 }]);
      assert.deepEqual(await peer.does('askServers', { data: ['sse', 'q'] }), [['node', 'q']]);
      io.serverSideEmit('sse', 'from node', 2);
      assert.deepEqual((await peer.hears('serverSideEmit')).data, ['sse', 'from node', 2]);
      assert.deepEqual(await io.serverSideEmitWithAck('sse', 'q'), [['rust', ['sse', 'q']]]);
    });

    test('both count two servers and know each other\'s rooms', async () => {
      assert.equal(await pair.peer.does('servers'), 2);
      assert.equal(await pair.io.of('/').adapter.serverCount(), 2);
      const rooms = await pair.peer.does('rooms');
      assert.ok(rooms.includes('node-room') && rooms.includes('42'), rooms);
      if (kind === 'pubsub') assert.ok((await pair.io.of('/').adapter.allRooms()).has('rust-room'));
    });

    if (kind === 'pubsub') {
      test('the emitter reaches the sockets of the Rust node', async () => {
        const { peer } = pair;
        peer.heard.length = 0;
        const emitter = new Emitter(pair.redis, { key: pair.prefix });
        emitter.to('rust-room').except('nobody').emit('emitted', Buffer.from([1]));
        assert.deepEqual((await peer.hears('broadcast')).data, ['emitted', { type: 'Buffer', data: [1] }]);
        emitter.in('rust-room').socketsJoin('by-emitter');
        assert.deepEqual((await peer.hears('join')).rooms, ['by-emitter']);
        emitter.socketsLeave(['by-emitter']);
        assert.deepEqual((await peer.hears('leave')).rooms, ['by-emitter']);
        emitter.serverSideEmit('sse', 'x');
        assert.deepEqual((await peer.hears('serverSideEmit')).data, ['sse', 'x']);
        emitter.in('rust-room').disconnectSockets(true);
        assert.deepEqual(await peer.hears('disconnect'), { operation: 'disconnect', close: true, meant: true });
      });
    }

    if (kind === 'streams') {
      test('a client that Node.js lost is taken up by the Rust node with what it missed', async () => {
        const { io, peer } = pair;
        const lost = connect(pair.url, { transports: ['websocket'], forceNew: true, reconnection: false });
        await within(new Promise((resolve) => lost.once('connect', resolve)), 'it is connected');
        const { _pid: pid, id: sid } = lost;
        const seen = new Promise((resolve) => lost.once('seen', resolve));
        io.to(sid).emit('seen');
        const offset = await within(seen, 'it has seen an event');
        lost.io.engine.close();
        await until('its session is kept', async () => (await pair.redis.exists(`sio:session:${pid}`)) === 1);
        peer.heard.length = 0;
        io.emit('missed', 1);
        await peer.hears('broadcast');
        await peer.does('emit', { data: ['missed', 2, { $bin: '0a' }], rooms: ['room'] });
        await peer.does('emit', { data: ['not missed'], except: ['room'] });
        const restored = await peer.does('restore', { pid, offset });
        assert.equal(restored.sid, sid);
        assert.deepEqual(restored.data, { name: 'node' });
        assert.ok(restored.rooms.includes('room') && restored.rooms.includes('42'));
        assert.deepEqual(restored.missed, [['missed', 1], ['missed', 2, { type: 'Buffer', data: [10] }]]);
        assert.equal(await peer.does('restore', { pid, offset }), null);
      });

      test('a client that the Rust node lost is taken up by Node.js', async () => {
        const { peer } = pair;
        const sid = 'sid-from-rust-000001';
        const offset = await peer.does('emit', { data: ['seen'], rooms: [sid] });
        await peer.does('save', { sid, pid: 'pid-from-rust-000001', rooms: [sid, 'room'], data: { name: 'ada' } });
        await peer.does('emit', { data: ['missed', 1], rooms: ['room'] });
        await peer.does('emit', { data: ['not missed'], rooms: ['elsewhere'] });
        const auth = { pid: 'pid-from-rust-000001', offset };
        const back = connect(pair.url, { transports: ['websocket'], forceNew: true, auth });
        const missed = [];
        back.onAny((...args) => missed.push(args));
        await within(new Promise((resolve) => back.once('connect', resolve)), 'it is connected');
        assert.equal(back.id, sid);
        assert.deepEqual(missed.map((args) => args.slice(0, -1)), [['missed', 1]]);
        back.close();
      });
    }

    test('a disconnection that the Rust node asks for ends the connection', async () => {
      const gone = new Promise((resolve) => pair.client.once('disconnect', resolve));
      await pair.peer.does('disconnect', { rooms: ['node-room'], close: true });
      assert.match(await within(gone, 'the client is disconnected'), /disconnect|close/);
    });
  });
}
