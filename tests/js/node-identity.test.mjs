// Who a client is, as real Socket.IO clients show it: what belongs to one user never reaches another, whatever a client
// knows or sends again.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';

import { io } from 'socket.io-client';

import { MainstayNode } from './lib/mainstay-node.mjs';
import { Redis } from './lib/redis.mjs';
import { until, within } from './lib/wait.mjs';

const SECRET = '0123456789abcdef0123456789abcdef';
const open = new Set();
let redis;
let folder;
before(async () => {
  redis = await Redis.start();
  folder = await mkdtemp(join(tmpdir(), 'mainstay-identity-'));
  await writeFile(join(folder, 'secret'), SECRET);
});
afterEach(() => {
  open.forEach((socket) => socket.close());
  open.clear();
});
after(async () => {
  await redis?.stop();
  await rm(folder, { recursive: true, force: true });
});

for (const adapter of ['memory', 'streams']) {
  test(`a client whose token became another user's takes nothing of the old session along, on ${adapter}`, async (t) => {
    const node = await start(t, adapter === 'memory' ? [] : ['--redis', `redis+unix://${redis.path}`]);
    const other = await connect(node, { auth: { token: token('carol') } });
    await asks(other, 'join', { room: 'kept' });
    for (const [second, isSame] of [['ann', true], ['bob', false]]) {
      let user = 'ann';
      const auth = (show) => show({ token: token(user, { jti: String(Math.random()) }) });
      const socket = await connect(node, { auth, reconnection: true, reconnectionDelay: 10 });
      const heard = [];
      for (const event of ['message', 'direct']) socket.on(event, (message) => heard.push(message.data));
      await asks(socket, 'join', { room: 'kept' });
      await asks(other, 'publish', { room: 'kept', data: 'seen' });
      await until('the first event', () => heard.length === 1);
      const { id } = socket;
      user = second;
      socket.io.engine.close();
      await asks(other, 'publish', { room: 'kept', data: 'missed' });
      await until('it is back', () => socket.connected);
      assert.equal(socket.recovered, isSame, second);
      assert.equal(socket.id === id, isSame, second);
      const is = await asks(socket, 'presence', { room: 'kept' });
      assert.equal(is.ok, isSame, JSON.stringify(is));
      if (isSame) await until('what it missed', () => heard.includes('missed'));
      await asks(other, 'publish', { room: 'kept', data: 'after' });
      await asks(socket, 'join', { room: 'last' });
      await asks(socket, 'publish', { room: 'last', data: 1 });
      assert.deepEqual(heard, isSame ? ['seen', 'missed', 'after'] : ['seen']);
      socket.close();
    }
  });
}

/** A node that asks for tokens. */
async function start(t, flags) {
  const auth = ['--jwt-key-file', join(folder, 'secret'), '--jwt-algorithm', 'HS256'];
  const node = await MainstayNode.start([...auth, '--drain', '0s', ...flags]);
  t.after(() => node.stop());
  return node;
}

/** A token of HS256. */
function token(sub, more = {}) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const signed = `${part({ alg: 'HS256' })}.${part({ sub, exp: Math.floor(Date.now() / 1000) + 600, ...more })}`;
  return `${signed}.${createHmac('sha256', SECRET).update(signed).digest('base64url')}`;
}

async function connect(node, options) {
  const socket = io(node.url, { transports: ['websocket'], forceNew: true, reconnection: false, ...options });
  open.add(socket);
  const comes = new Promise((resolve, reject) => {
    socket.once('connect', resolve);
    socket.once('connect_error', reject);
  });
  await within(comes, 'connect');
  return socket;
}

function asks(socket, name, fields) {
  return within(socket.emitWithAck(name, fields), `the answer to ${name}`);
}
