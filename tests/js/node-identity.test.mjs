// Who a client is, as real Socket.IO clients show it: what belongs to one user never reaches another, whatever a client
// knows or sends again.

import assert from 'node:assert/strict';
import { createHash, createHmac } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';

import { io } from 'socket.io-client';
import io2 from 'socket.io-client-2';

import { MainstayNode } from './lib/mainstay-node.mjs';
import { Redis } from './lib/redis.mjs';
import { until, within } from './lib/wait.mjs';
import { ask, place } from './lib/wire.mjs';

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

test('what others are told of a client of the older generation opens nothing of its session', async (t) => {
  const node = await start(t, ['--eio3', '--max-payload', '1MiB', '--namespaces', '/admin']);
  const onlooker = await connect(node, { auth: { token: token('mallory') } });
  await asks(onlooker, 'join', { room: 'r' });
  const told = new Promise((resolve) => onlooker.once('message', resolve));
  const victim = io2(node.url, { transports: ['polling'], query: { token: token('ann') }, forceNew: true, reconnection: false });
  open.add(victim);
  await within(new Promise((resolve) => victim.once('connect', resolve)), 'connect');
  const emit = (name, fields) => within(new Promise((resolve) => victim.emit(name, fields, resolve)), name);
  await emit('join', { room: 'r' });
  await emit('publish', { room: 'r', data: 'hello' });
  const { members } = await asks(onlooker, 'presence', { room: 'r' });
  const connections = (await asks(onlooker, 'presence', { user: 'ann' })).connections;
  const { from } = await within(told, 'a message');
  const ids = [from.id, members.find(({ user }) => user === 'ann').id, connections[0].socketId];
  // The client can tell which of them it is itself.
  const own = createHash('sha256').update(victim.io.engine.id).digest().subarray(0, 15).toString('base64url');
  assert.deepEqual(ids, [own, own, own]);
  assert.notEqual(own, victim.io.engine.id);
  const taken = place(node, 'EIO=3', 'transport=polling', `sid=${own}`);
  for (const options of [{}, { method: 'POST', body: '44:42["publish",{"room":"r","data":"forged"}]' }]) {
    const { status, text } = await ask(taken, options);
    assert.deepEqual([status, JSON.parse(text).message], [400, 'Session ID unknown']);
  }
  // It is reached by that id, and by nothing else.
  const heard = new Promise((resolve) => victim.once('direct', resolve));
  await asks(onlooker, 'direct', { user: 'ann', data: 1 });
  assert.equal((await within(heard, 'a direct message')).data, 1);
});

for (const [generation, connected] of [['4', io], ['2', io2]]) {
  for (const transports of [['polling'], ['polling', 'websocket']]) {
    test(`socket.io-client ${generation} by ${transports.join(' and ')} is bound to its credentials and does not notice`, async (t) => {
      const node = await start(t, ['--eio3', '--max-payload', '1MiB', '--bind-address']);
      const own = { authorization: `Bearer ${token('ann')}`, 'x-forwarded-for': '192.0.2.1' };
      const extraHeaders = { ...own };
      const options = { transports, forceNew: true, reconnection: false, query: { token: token('ann') } };
      const socket = connected(node.url, { ...options, extraHeaders, transportOptions: { polling: { extraHeaders }, websocket: { extraHeaders } } });
      open.add(socket);
      await within(new Promise((resolve, reject) => {
        socket.once('connect', resolve);
        socket.once('connect_error', reject);
      }), 'connect');
      if (transports.length > 1) await until('the upgrade', () => socket.io.engine.transport.name === 'websocket');
      const emit = (name, fields) => within(new Promise((resolve) => socket.emit(name, fields, resolve)), name);
      assert.equal((await emit('join', { room: 'r' })).ok, true);
      const sid = `sid=${socket.io.engine.id}`;
      const query = [`EIO=${generation === '4' ? 4 : 3}`, 'transport=polling', sid];
      const whole = [...query, `token=${options.query.token}`];
      const thefts = transports.length > 1 ? [] : [
        [whole, { 'x-forwarded-for': '192.0.2.1' }],
        [whole, { ...own, authorization: `Bearer ${token('mallory')}` }],
        [whole, { ...own, 'x-forwarded-for': '192.0.2.2' }],
        [whole, { authorization: own.authorization }],
        [[...query, `token=${token('mallory')}`], own],
        [query, own],
      ];
      for (const [words, headers] of thefts) {
        for (const more of [{}, { method: 'POST', body: '1' }]) {
          assert.equal((await ask(place(node, ...words), { ...more, headers })).status, 403, JSON.stringify(headers));
        }
      }
      assert.equal((await emit('publish', { room: 'r', data: 1 })).ok, true);
      assert.equal(socket.connected, true);
    });
  }
}

test('who shows no token holds no seat, and makes way for whoever comes later from the same address', async (t) => {
  const node = await start(t, ['--max-connections', '2', '--max-pending', '60', '--max-pending-per-address', '50']);
  const from = (address) => ({ headers: { 'x-forwarded-for': address } });
  const handshake = place(node, 'EIO=4', 'transport=polling');
  const opens = async (address) => JSON.parse((await ask(handshake, from(address))).text.slice(1)).sid;
  const elsewhere = place(node, 'EIO=4', 'transport=polling', `sid=${await opens('192.0.2.7')}`);
  const sids = [];
  for (let n = 0; n < 100; n += 1) sids.push(await opens('192.0.2.1'));
  const socket = await connect(node, { transports: ['polling'], auth: { token: token('ann') }, extraHeaders: { 'x-forwarded-for': '192.0.2.1' } });
  assert.equal((await asks(socket, 'join', { room: 'r' })).ok, true);
  assert.equal((await fetch(`${node.url}/health`)).headers.get('x-mainstay-load'), '1/2');
  // Whoever still asks in that moment hears the end of the session.
  const gone = () => ask(place(node, 'EIO=4', 'transport=polling', `sid=${sids[0]}`));
  await until('the oldest is gone', async () => (await gone()).text.includes('Session ID unknown'));
  // Nobody at another address was pushed out.
  const entered = await ask(elsewhere, { ...from('192.0.2.7'), method: 'POST', body: `40${JSON.stringify({ token: token('bob') })}` });
  assert.equal(entered.status, 200);
  assert.match((await ask(elsewhere, from('192.0.2.7'))).text, /^40\{"sid"/);
  const full = connect(node, { auth: { token: token('carol') } });
  await assert.rejects(full, /Server at capacity/);
});

test('a connection that is admitted nowhere in --connect-timeout ends', async (t) => {
  const node = await start(t, ['--connect-timeout', '300ms']);
  const { text } = await ask(place(node, 'EIO=4', 'transport=polling'));
  const session = place(node, 'EIO=4', 'transport=polling', `sid=${JSON.parse(text.slice(1)).sid}`);
  assert.equal((await ask(session, { method: 'POST', body: '40{"token":"none"}' })).status, 200);
  assert.match((await ask(session)).text, /^44/);
  assert.deepEqual(await ask(session), { status: 200, text: '1' });
  assert.equal((await ask(session)).status, 400);
});

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
