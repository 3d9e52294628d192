// The node's binary as a fleet uses it: Socket.IO and plain clients over two nodes and a real Redis, its API, its
// limits and its end.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { io } from 'socket.io-client';
import WebSocket from 'ws';

import { Child } from './lib/child.mjs';
import { Node, binary } from './lib/node.mjs';
import { Redis } from './lib/redis.mjs';
import { until, within } from './lib/wait.mjs';

const SECRET = '0123456789abcdef0123456789abcdef';
const API = 'an-api-token-0123456789';
let redis;
let folder;
let url;
before(async () => {
  redis = await Redis.start();
  url = `redis+unix://${redis.path}`;
  folder = await mkdtemp(join(tmpdir(), 'mainstay-node-'));
  await writeFile(join(folder, 'secret'), SECRET);
  await writeFile(join(folder, 'api'), API);
});
after(async () => {
  await redis?.stop();
  await rm(folder, { recursive: true, force: true });
});

test('Socket.IO and plain clients on two nodes share rooms, users and the API', async (t) => {
  const [one, two] = await fleet(t, 'ws1', 'ws2');
  const ann = await socketio(t, one, { auth: { user: 'ann' } });
  const bob = await plain(t, two, '?user=bob');
  assert.equal((await ann.emitWithAck('join', { room: 'lobby' })).ok, true);
  assert.equal((await bob.ask({ type: 'join', room: 'lobby' })).type, 'ok');
  await ann.emitWithAck('publish', { room: 'lobby', data: { text: 'hello' } });
  const heard = await bob.heard((message) => message.type === 'message');
  assert.deepEqual(heard, { type: 'message', room: 'lobby', from: { user: 'ann', id: ann.id }, data: { text: 'hello' }, node: 'ws1' });
  const back = once(ann, 'message');
  await bob.ask({ type: 'publish', room: 'lobby', data: 'and back' });
  assert.equal((await within(back, 'ann hears bob'))[0].data, 'and back');
  const members = (await ann.emitWithAck('presence', { room: 'lobby' })).members;
  assert.deepEqual(members.map(({ user, node }) => `${user}@${node}`).sort(), ['ann@ws1', 'bob@ws2']);

  const direct = once(ann, 'direct');
  const answer = await until('ann is known', async () => {
    const said = await bob.ask({ type: 'direct', user: 'ann', data: 1 });
    return said.type === 'ok' && said;
  });
  assert.equal(answer.delivered, 1);
  assert.equal((await within(direct, 'ann hears it'))[0].from.user, 'bob');
  assert.match((await bob.ask({ type: 'direct', user: 'nobody', data: 1 })).error, /not connected/);
  assert.match((await ann.emitWithAck('publish', { room: 'elsewhere', data: 1 })).error, /join elsewhere/);
  assert.match((await ann.emitWithAck('join', { room: 'user:bob' })).error, /write direct/);

  const errors = [];
  ann.on('error', (error) => errors.push(error));
  ann.emit('jion', { room: 'lobby' });
  ann.emit('join', { room: 'attic' });
  ann.emit('publish', { room: 'elsewhere', data: 1 });
  await until('both faults are told without an ack', () => errors.length === 2);
  assert.match(errors[0].error, /^`jion` is no request; write join,/);
  assert.deepEqual(errors[1], { error: 'join elsewhere before you publish to it' });

  const user = await api(one, 'GET', '/api/users/bob');
  assert.equal(user.status, 200);
  assert.equal(user.body.online, true);
  assert.equal(user.body.connections[0].nodeId, 'ws2');
  assert.equal((await bob.ask({ type: 'presence', status: 'away' })).status, 'away');
  const bobs = async () => (await ann.emitWithAck('presence', { user: 'bob' })).connections[0].status;
  await until('ann sees that bob is away', async () => (await bobs()) === 'away');
  assert.match((await bob.ask({ type: 'presence', status: 'Out!' })).error, /a status is 1 to 32 of a-z/);
  assert.match((await (await plain(t, one, '')).ask({ type: 'presence', status: 'away' })).error, /only a user has/);
  const priced = once(ann, 'price');
  assert.equal((await api(two, 'POST', '/api/publish', { room: 'lobby', event: 'price', data: 42 })).status, 200);
  assert.equal((await within(priced, 'ann hears the price'))[0], 42);
  await bob.heard((message) => message.event === 'price' && message.data[0] === 42);
  const sent = await api(one, 'POST', '/api/publish', { user: 'bob', data: 'from the back end' });
  assert.deepEqual(sent.body, { ok: true, delivered: 1 });
  await bob.heard((message) => message.type === 'direct' && message.from === null && message.data === 'from the back end');
  assert.equal((await api(one, 'POST', '/api/publish', { room: 'lobby', date: 1 })).status, 400);
  assert.equal((await api(one, 'GET', '/api/users/bob', undefined, 'wrong-token-0123456789')).status, 401);
});

test('at SIGTERM health says 503, clients hear 1012, presence goes, and the exit code is 0', async (t) => {
  const [one, two] = await fleet(t, 'ws1', 'ws2', ['--drain', '1s']);
  const clients = [await plain(t, one, '?user=carol'), await plain(t, one, '?user=carol'), await plain(t, one, '')];
  const carol = () => api(two, 'GET', '/api/users/carol').then(({ body }) => body.connections?.length);
  await until('both connections are known', async () => (await carol()) === 2);
  assert.equal((await one.health()).headers.get('x-mainstay-load'), '3/50000');
  const closes = clients.map((client) => client.closed);
  one.child.signal('SIGTERM');
  const said = await until('health says so', async () => {
    const health = await one.health();
    return health.status === 503 && health;
  });
  assert.equal(said.body.status, 'draining');
  assert.equal(said.headers.get('x-mainstay-state'), 'draining');
  for (const closed of closes) assert.equal((await within(closed, 'a close')).code, 1012);
  assert.equal((await within(one.child.ended, 'the node ends')).code, 0);
  assert.equal(await carol(), 0);
});

test('the presence of a node that is killed expires', async (t) => {
  const [one, two] = await fleet(t, 'ws1', 'ws2', ['--presence-lease', '1s']);
  await plain(t, one, '?user=dave');
  const dave = () => api(two, 'GET', '/api/users/dave').then(({ body }) => body.online);
  await until('dave is known', async () => (await dave()) === true);
  await one.stop('SIGKILL');
  await until('dave is forgotten', async () => (await dave()) === false);
});

test('a node that is killed and starts again, alone, forgets who was connected', async (t) => {
  const flags = ['--presence-lease', '1s'];
  const [former] = await fleet(t, 'ws1', null, flags);
  await plain(t, former, '?user=finn');
  const finn = (node) => api(node, 'GET', '/api/users/finn').then(({ body }) => body.online);
  await until('finn is known', async () => (await finn(former)) === true);
  await former.stop('SIGKILL');
  const [anew] = await fleet(t, 'ws1', null, flags);
  await until('finn is forgotten', async () => (await finn(anew)) === false);
});

test('one client too many is told so by either protocol', async (t) => {
  const [node] = await fleet(t, 'ws1', null, ['--max-connections', '1']);
  await plain(t, node, '');
  assert.equal((await node.health()).body.status, 'full');
  const late = io(node.url, { transports: ['websocket'], reconnection: false });
  t.after(() => late.close());
  const [error] = await within(once(late, 'connect_error'), 'a refusal');
  assert.equal(error.message, 'Server at capacity');
  const socket = new WebSocket(`ws://${node.address}/ws`);
  const [code, reason] = await within(once(socket, 'close'), 'a close');
  assert.deepEqual([code, String(reason)], [1008, 'Server at capacity']);
  assert.match(await node.metrics(), /^websocket_connections 1$/m);
});

test('a Socket.IO client needs a token, and is disconnected when it expires', async (t) => {
  const flags = ['--jwt-key-file', join(folder, 'secret'), '--jwt-algorithm', 'HS256', '--jwt-leeway', '0s'];
  const [node] = await fleet(t, 'ws1', null, flags);
  const refused = io(node.url, { transports: ['websocket'], reconnection: false, auth: { user: 'eve' } });
  t.after(() => refused.close());
  assert.equal((await within(once(refused, 'connect_error'), 'a refusal'))[0].message, 'a token is needed');
  const exp = Math.floor(Date.now() / 1000) + 2;
  const eve = await socketio(t, node, { auth: { token: token({ sub: 'eve', exp }) }, reconnection: false });
  assert.equal((await eve.emitWithAck('presence', { user: 'eve' })).ok, true);
  await within(once(eve, 'disconnect'), 'the end of the token');
});

test("a Socket.IO handshake's Bearer token lets a client in, by polling and by WebSocket", async (t) => {
  const flags = ['--jwt-key-file', join(folder, 'secret'), '--jwt-algorithm', 'HS256'];
  const [node] = await fleet(t, 'ws1', null, flags);
  const exp = Math.floor(Date.now() / 1000) + 60;
  const extraHeaders = { authorization: `Bearer ${token({ sub: 'eve', exp })}` };
  for (const transports of [['polling'], ['websocket'], ['polling', 'websocket']]) {
    const eve = await socketio(t, node, { transports, extraHeaders, reconnection: false });
    const presence = await eve.emitWithAck('presence', { user: 'eve' });
    assert.equal(presence.online, true, `${transports}: ${JSON.stringify(presence)}`);
    eve.close();
  }
  // What the client says in the packet comes first, right or wrong.
  const wrong = io(node.url, { transports: ['polling'], extraHeaders, auth: { token: 'x' }, reconnection: false });
  t.after(() => wrong.close());
  assert.equal((await within(once(wrong, 'connect_error'), 'a refusal'))[0].message, 'the token is not valid');
});

test('a client joins up to --max-rooms rooms, and hears what to do about one more', async (t) => {
  const [node] = await fleet(t, 'ws1', null, ['--max-rooms', '3']);
  const ann = await socketio(t, node, { auth: { user: 'ann' } });
  const bob = await plain(t, node, '');
  for (const room of ['a', 'b', 'c', 'a']) {
    assert.equal((await ann.emitWithAck('join', { room })).ok, true, room);
    assert.equal((await bob.ask({ type: 'join', room })).type, 'ok', room);
  }
  const told = 'this client is in 3 rooms, the most that it may join; leave one first';
  assert.deepEqual(await ann.emitWithAck('join', { room: 'd' }), { ok: false, error: told });
  assert.equal((await bob.ask({ type: 'join', room: 'd' })).error, told);
  await ann.emitWithAck('leave', { room: 'b' });
  assert.equal((await ann.emitWithAck('join', { room: 'd' })).ok, true);
});

test('a flood of questions is answered or refused, one by one, and others publish meanwhile', async (t) => {
  const [one, two] = await fleet(t, 'ws1', 'ws2');
  const nosy = await socketio(t, one, {});
  const other = await socketio(t, one, {});
  const far = await Promise.all(Array.from({ length: 50 }, () => socketio(t, two, {})));
  for (const socket of [nosy, other, ...far]) await socket.emitWithAck('join', { room: 'big' });
  const questions = Array.from({ length: 1000 }, () => nosy.emitWithAck('presence', { room: 'big' }));
  for (let n = 0; n < 20; n += 1) assert.equal((await other.emitWithAck('publish', { room: 'big', data: n })).ok, true);
  const answers = await within(Promise.all(questions), 'an answer to each question', 30_000);
  const answered = answers.filter(({ ok }) => ok);
  assert.ok(answered.length >= 100 && answered.length < 1000, `${answered.length} answered`);
  for (const { members } of answered) assert.equal(members.length, 52);
  for (const { ok, error } of answers) assert.ok(ok || /over 100 questions of this client wait/.test(error), error);
  assert.equal((await nosy.emitWithAck('presence', { room: 'big' })).members.length, 52, 'and asks on afterwards');
  assert.match(await one.metrics(), /^mainstay_node_unpublished_total(\{\})? 0$/m);
});

test('the members of a large room come by pages', async (t) => {
  const [one, two] = await fleet(t, 'ws1', 'ws2');
  const crowd = await Promise.all(Array.from({ length: 1001 }, (_, n) => plain(t, n % 2 ? one : two, '')));
  await Promise.all(crowd.map((client) => client.ask({ type: 'join', room: 'crowd' })));
  const first = await crowd[0].ask({ type: 'presence', room: 'crowd' });
  assert.deepEqual([first.members.length, first.count, first.next], [1000, 1001, first.members[999].id]);
  const second = await crowd[0].ask({ type: 'presence', room: 'crowd', after: first.next });
  assert.deepEqual([second.members.length, second.count, second.next], [1, undefined, undefined]);
  assert.equal(new Set([...first.members, ...second.members].map(({ id }) => id)).size, 1001);
});

test('two processes share a port when both have the flag, and one without it is told of it', async (t) => {
  const start = async (id, ...where) => {
    const node = await Node.start(id, ['--reuse-port', '--drain', '0s'], ...where);
    t.after(() => node.stop());
    return node;
  };
  const one = await start('ws1');
  const two = await start('ws2', one.address);
  assert.equal(two.address, one.address);
  // The kernel takes one of the two by the client's port: that all go to the same one is a chance of 2 in 2^100.
  const met = new Set();
  for (let n = 0; n < 100 && met.size < 2; n += 1) {
    const client = await plain(t, one, '');
    met.add((await client.heard((message) => message.type === 'welcome')).node);
    client.socket.terminate();
  }
  assert.deepEqual([...met].sort(), ['ws1', 'ws2']);

  const third = new Child('ws3', await binary(), ['--id', 'ws3', '--listen', one.address]);
  assert.equal((await within(third.ended, 'it ends')).code, 1);
  assert.match(third.tail(), /in use.*; processes share a port when each of them has --reuse-port/);
  // The other goes on alone, with whatever comes from now on.
  assert.equal((await one.stop()).code, 0);
  for (let n = 0; n < 10; n += 1) {
    const client = await plain(t, two, '');
    assert.equal((await client.heard((message) => message.type === 'welcome')).node, 'ws2');
  }
});

test('wrong flags are all said, and the exit code is 2', async () => {
  const child = new Child('mainstay-node', await binary(), ['--id', 'ws1', '--adapter', 'pubsub', '--idle', '1s']);
  assert.equal((await within(child.ended, 'it ends')).code, 2);
  assert.match(child.tail(), /--adapter pubsub needs --redis/);
  assert.match(child.tail(), /--idle is not longer than --ping-interval/);
});

/** Two nodes on the Redis of the tests, or one when the second has no name; they end with the test. */
async function fleet(t, first, second, flags = []) {
  const all = ['--redis', url, '--api-token-file', join(folder, 'api'), ...flags];
  const nodes = [];
  for (const id of [first, second].filter(Boolean)) {
    const node = await Node.start(id, [...all, ...(flags.includes('--drain') ? [] : ['--drain', '0s'])]);
    t.after(() => node.stop());
    await until(`${id} reaches redis`, async () => (await node.health()).body.redis.state === 'up');
    nodes.push(node);
  }
  return nodes;
}

async function socketio(t, node, options) {
  const socket = io(node.url, { transports: ['websocket'], forceNew: true, ...options });
  t.after(() => socket.close());
  await within(once(socket, 'connect'), 'a connection');
  return socket;
}

/** A plain client: `ask` gives the answer to a request, `heard` the first message that fits. */
async function plain(t, node, query) {
  const socket = new WebSocket(`ws://${node.address}/ws${query}`);
  t.after(() => socket.terminate());
  const messages = [];
  let last = 0;
  socket.on('message', (text) => messages.push(JSON.parse(text)));
  socket.on('error', () => {});
  const closed = once(socket, 'close').then(([code, reason]) => ({ code, reason: String(reason) }));
  const heard = (fits) => until(() => `a message that fits among ${JSON.stringify(messages)}`, () => messages.find(fits));
  await heard((message) => message.type === 'welcome');
  const ask = (message) => {
    const id = last += 1;
    socket.send(JSON.stringify({ ...message, id }));
    return heard((answer) => answer.id === id && ['ok', 'error'].includes(answer.type));
  };
  return { socket, ask, heard, closed };
}

async function api(node, method, path, body, shown = API) {
  const headers = { authorization: `Bearer ${shown}` };
  const answer = await fetch(node.url + path, { method, headers, body: body && JSON.stringify(body) });
  return { status: answer.status, body: await answer.json() };
}

function token(claims) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const signed = `${part({ alg: 'HS256', typ: 'JWT' })}.${part(claims)}`;
  return `${signed}.${createHmac('sha256', SECRET).update(signed).digest('base64url')}`;
}
