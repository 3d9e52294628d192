// A node as users start it in a fleet of Node.js servers: it answers what it is asked, and knows who is on theirs.

import assert from 'node:assert/strict';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';

import { io } from 'socket.io-client';

import { Node } from './lib/node.mjs';
import { Peer, Single } from './lib/peers.mjs';
import { until, within } from './lib/wait.mjs';

const TOKEN = 'a-token-of-at-least-thirty-two-bytes';

/** A Redis, a node and servers, ended with the test. */
async function fleet(t, adapter, kinds) {
  const folder = await mkdtemp(join(tmpdir(), 'mainstay-fleet-'));
  const tokens = join(folder, 'tokens');
  await writeFile(tokens, `${TOKEN}\n`, { mode: 0o600 });
  const redis = await Single.start();
  const flags = ['--redis', `redis+unix://${redis.path}`, '--adapter', adapter, '--api-token-file', tokens];
  const node = await Node.start('ws1', flags);
  t.after(async () => {
    await node.stop('SIGKILL');
    await redis.stop();
    await rm(folder, { recursive: true, force: true });
  });
  await until('the node is up', async () => (await node.health()).body.redis?.state === 'up');
  const peers = [];
  for (const kind of kinds) {
    const peer = await Peer.start(kind, { adapter, redis, recovery: adapter === 'streams' ? 60 : 0, name: kind });
    t.after(() => peer.stop());
    peers.push(peer);
  }
  await until('everybody counts', async () => (await peers[0].call('serverCount')) === kinds.length + 1);
  return { node, peers };
}

/** Asks the node's API. */
async function api(node, path, body) {
  const headers = { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json' };
  const options = body ? { method: 'POST', body: JSON.stringify(body) } : {};
  const answer = await fetch(`${node.url}${path}`, { ...options, headers });
  return { status: answer.status, body: await answer.json() };
}

for (const adapter of ['pubsub', 'sharded', 'streams']) {
  describe(adapter, () => {
    test('a node with no listener answers every event of another server that is counted', async (t) => {
      const { peers: [js, rust] } = await fleet(t, adapter, ['node', 'rust']);
      const fromNode = await js.call('serverSideEmitWithAck', { event: 'question' });
      assert.equal(fromNode.fault, undefined);
      assert.deepEqual(fromNode.answers.map(String).sort(), ['null', 'rust']);
      const fromRust = await rust.call('serverSideEmitWithAck', { event: 'question' });
      assert.equal(fromRust.fault, undefined);
      assert.deepEqual(fromRust.answers.map(String).sort(), ['node', 'null']);
    });

    test('a user on a Node.js server is online, and gets what is sent to him', async (t) => {
      const { node, peers: [js] } = await fleet(t, adapter, ['node']);
      assert.deepEqual((await api(node, '/api/users/alice')).body, { user: 'alice', online: false, connections: [] });
      const alice = await js.client(['user:alice'], { data: { user: 'alice', node: 'js1' } });
      const bob = io(node.url, { transports: ['websocket'], forceNew: true, reconnection: false, auth: { user: 'bob' } });
      t.after(() => [alice, bob].forEach((client) => client.disconnect?.() ?? client.close()));
      await until('bob is connected', () => bob.connected);
      await until('the node knows of her', async () => (await api(node, '/api/users/alice')).body.online);
      const { body } = await api(node, '/api/users/alice');
      assert.deepEqual(body.connections.map(({ socketId, nodeId, status }) => [socketId, nodeId, status]), [[alice.id, 'js1', 'online']]);
      assert.match(body.connections[0].connectedAt, /^20\d\d-.*Z$/);
      const published = await api(node, '/api/publish', { user: 'alice', data: 'from the API' });
      assert.deepEqual(published, { status: 200, body: { ok: true, delivered: 1 } });
      const direct = await within(bob.emitWithAck('direct', { user: 'alice', data: 'from bob' }), 'an answer to direct');
      assert.equal(direct.delivered, 1);
      const presence = await within(bob.emitWithAck('presence', { user: 'alice' }), 'an answer to presence');
      assert.equal(presence.online, true);
      await until('she has both', () => alice.got.length >= 2);
      assert.deepEqual(alice.got.map(([event, { data }]) => [event, data]), [['direct', 'from the API'], ['direct', 'from bob']]);
    });
  });
}
