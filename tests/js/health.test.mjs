// What takes a node out and what brings it back, with real servers, real deaths and the default config.

import assert from 'node:assert/strict';
import { after, test } from 'node:test';

import { Balancer, config } from './lib/balancer.mjs';
import { closeClients, User } from './lib/client.mjs';
import { PlainFleet } from './lib/fleet.mjs';
import { Node } from './lib/node.mjs';
import { until } from './lib/wait.mjs';
import { asks, echoes, opened } from './lib/websocket.mjs';

const NODES = ['ws1', 'ws2', 'ws3'];
const WEBSOCKET = { transports: ['websocket'] };

/** A balancer with the defaults in front of plain servers; `pool` changes them. */
async function stage(t, { kind, names = NODES, pool = {} }) {
  const fleet = await PlainFleet.start({ kind, names });
  t.after(() => fleet.stop());
  const defaults = config(fleet, pool);
  if (!pool.health) delete defaults.pools.chat.health;
  const balancer = await Balancer.start(defaults);
  t.after(() => balancer.stop());
  return { fleet, balancer };
}

const changes = (balancer) => balancer.child.lines.filter((line) => line.includes('node state changed'));

test('thirty upgrades to nowhere take no Socket.IO server out', async (t) => {
  const { fleet, balancer } = await stage(t, { kind: 'socket.io' });
  const client = await new User().connect(balancer.url, { ...WEBSOCKET });
  // engine.io closes what is not its own after a second, without a word.
  const answers = await Promise.all(Array.from({ length: 30 }, () => asks(`ws://${balancer.address}/x`)));
  assert.deepEqual(answers, Array(30).fill(502));
  for (const name of fleet.names) await balancer.sees(name, 'up');
  assert.deepEqual(changes(balancer).filter((line) => line.includes('ejected')), []);
  assert.equal(await client.ask('echo', 7), 7);
  assert.deepEqual(client.disconnects, []);
});

test('after an outage under load a node serves as soon as its probe says that it is there', async (t) => {
  const { fleet, balancer } = await stage(t, { kind: 'ws', names: ['ws1', 'ws2'] });
  const url = `ws://${balancer.address}/`;
  (await opened(url)).terminate();
  for (const name of fleet.names) await fleet.kill(name);
  // Clients knock from many addresses while nobody is there, until one node is ejected and both are down.
  let knocks = 0;
  await until('both nodes down', async () => {
    await Promise.all([1, 2, 3, 4, 5].map((n) => asks(url, { localAddress: `127.0.0.${n}` })));
    knocks += 5;
    const down = (await balancer.metric('node_state')).filter(({ labels, value }) => labels.state === 'down' && value === 1);
    return down.length === 2;
  });
  assert.ok(changes(balancer).some((line) => line.includes('ejected')), `${knocks} knocks ejected nobody`);
  await fleet.revive('ws1');
  const begun = Date.now();
  await until('service', async () => (await asks(url)) === 101, 10_000);
  // A good probe comes within one interval (2 s and a fifth); the 30 s of an ejection would be over the deadline.
  t.diagnostic(`service ${Date.now() - begun} ms after the node was there`);
});

for (const how of ['busy', 'closing', 'resetting']) {
  test(`a client does not notice a ${how} node: another takes its upgrade`, async (t) => {
    const { fleet, balancer } = await stage(t, {
      kind: { ws1: how, ws2: 'ws', ws3: 'ws' },
      pool: { affinity: [], balance: 'round_robin' },
    });
    for (let n = 0; n < 6; n += 1) await echoes(`ws://${balancer.address}/`, `hello ${n}`);
    const sent = (await balancer.metric('handshake_retries_total')).find(({ labels }) => labels.result === 'sent');
    assert.ok(sent.value >= 2, `${sent.value} retries`);
    for (const name of fleet.names) await balancer.sees(name, 'up');
  });
}

test('a line about a node says where it is, what was seen, and what would be right', async (t) => {
  const pool = { health: { http: { path: '/health', status: 200 }, interval: '200ms', rise: 1, fall: 1 } };
  const { fleet, balancer } = await stage(t, { kind: 'socket.io', names: ['ws1', 'ws2'], pool });
  const { port } = fleet.node('ws1');
  const line = changes(balancer).find((one) => one.includes('ws1'));
  assert.ok(line, 'the log says that ws1 is down');
  for (const part of ['change=down', `127.0.0.1:${port}`, 'GET /health answered 404, not 200', 'health: { tcp: {} }']) {
    assert.ok(line.includes(part), `${part} in ${line}`);
  }
});

test('a node that dies says so, and how it came back', async (t) => {
  const pool = { health: { auto: {}, interval: '200ms', rise: 1, fall: 1 } };
  const { fleet, balancer } = await stage(t, { kind: 'ws', pool });
  await fleet.kill('ws2');
  await balancer.child.line(/ws2.*change=down.*connection refused/);
  await fleet.revive('ws2');
  await balancer.child.line(/ws2.*change=up.*GET \/health answered 426/);
});

test('our own node is drained by what it says to the default probe', async (t) => {
  const nodes = await Promise.all(['ws1', 'ws2'].map((id) => Node.start(id, ['--drain', '15s'])));
  t.after(() => Promise.all(nodes.map((node) => node.stop('SIGKILL'))));
  const listed = nodes.map(({ id, address }) => ({ id, address }));
  const defaults = config({ listed });
  // The default but for its interval: a node with little to close is soon gone.
  defaults.pools.chat.health = { interval: '50ms' };
  const balancer = await Balancer.start(defaults);
  t.after(() => balancer.stop());
  await balancer.sees('ws1', 'up');
  const sockets = await Promise.all(Array.from({ length: 40 }, () => opened(`ws://${balancer.address}/ws`)));
  t.after(() => sockets.forEach((socket) => socket.terminate()));
  nodes[0].child.signal('SIGTERM');
  await balancer.child.line(/ws1.*change=draining reason="the node asks for it"/);
  await balancer.sees('ws2', 'up');
});

after(closeClients);
