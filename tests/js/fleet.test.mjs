// A fleet as one thing: messages cross it, clients spread over it, and the death of a node is that node's matter.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';

import { Balancer, config } from './lib/balancer.mjs';
import { closeClients, User } from './lib/client.mjs';
import { Fleet } from './lib/fleet.mjs';
import { until } from './lib/wait.mjs';

const COOKIE = [{ cookie: { name: 'mainstay' } }];
const WEBSOCKET = { transports: ['websocket'] };

let fleet;
before(async () => (fleet = await Fleet.start()));
afterEach(async () => {
  closeClients();
  await fleet.mend();
});
after(() => fleet?.stop());

test('a broadcast reaches clients on all three nodes', async (t) => {
  const balancer = await started(t, { affinity: COOKIE, balance: 'round_robin' });
  const clients = await crowd(balancer, 9);
  assert.deepEqual([...byNode(clients).keys()].sort(), fleet.names);
  for (const speaker of clients) {
    const heard = clients.map((client) => client.hears('shouted'));
    speaker.socket.emit('shout', `from ${speaker.home}`);
    for (const said of await Promise.all(heard)) {
      assert.deepEqual(said, { from: speaker.home, text: `from ${speaker.home}` });
    }
  }
});

test('a message to a room reaches its members on other nodes and nobody else', async (t) => {
  const balancer = await started(t, { affinity: COOKIE, balance: 'round_robin' });
  const clients = await crowd(balancer, 6);
  const members = clients.filter((_, n) => n % 2 === 0);
  const strangers = clients.filter((_, n) => n % 2 === 1);
  for (const member of members) await member.ask('join', 'deck');
  const overheard = [];
  for (const stranger of strangers) stranger.socket.on('told', (said) => overheard.push(said));
  const heard = members.map((member) => member.hears('told'));
  strangers[0].socket.emit('tell', 'deck', 'all hands');
  for (const said of await Promise.all(heard)) assert.equal(said.text, 'all hands');
  // A broadcast after it comes after it, so whoever has heard this has missed nothing.
  const last = strangers.map((stranger) => stranger.hears('shouted'));
  strangers[0].socket.emit('shout', 'over');
  await Promise.all(last);
  assert.deepEqual(overheard, []);
});

test('sixty clients that nothing pins spread evenly, also when they come at once', async (t) => {
  const balancer = await started(t, { affinity: [], balance: 'least_connections' });
  const clients = await crowd(balancer, 60, WEBSOCKET);
  const counts = byNode(clients);
  for (const name of fleet.names) {
    const count = counts.get(name)?.length ?? 0;
    assert.ok(count >= 15 && count <= 25, `${name} has ${count} of 60`);
  }
  await balancer.settled(60);
  const tunnels = await balancer.tunnels();
  for (const [name, there] of counts) assert.equal(tunnels.get(name), there.length, `the metric of ${name}`);
  clients.forEach((client) => client.close());
  await balancer.settled(0);
});

test('sixty users spread by their names, and a new balancer process puts each where it was', async (t) => {
  const pool = { affinity: [{ query: { name: 'user' } }], load_bound: 100 };
  const homes = [];
  for (const balancer of [await started(t, pool), await started(t, pool)]) {
    const clients = await Promise.all(Array.from({ length: 60 }, (_, n) => (
      new User().connect(balancer.url, { ...WEBSOCKET, query: { user: `user-${n}` } }))));
    homes.push(await Promise.all(clients.map((client) => client.node())));
  }
  assert.deepEqual(homes[1], homes[0]);
  for (const name of fleet.names) {
    const count = homes[0].filter((home) => home === name).length;
    assert.ok(count >= 8, `${name} has ${count} of 60`);
  }
});

test('when a node is killed its clients come back on another and the others notice nothing', async (t) => {
  const balancer = await started(t, { affinity: COOKIE, balance: 'round_robin' });
  const clients = await crowd(balancer, 12);
  await Promise.all(clients.map((client) => client.upgraded()));
  const victims = clients.filter((client) => client.home === 'ws2');
  const others = clients.filter((client) => client.home !== 'ws2');
  assert.ok(victims.length > 0 && others.length > 0, `${victims.length} and ${others.length}`);

  await fleet.kill('ws2');
  for (const victim of victims) {
    await victim.connected(2);
    assert.notEqual(await victim.node(), 'ws2');
  }
  for (const other of others) {
    assert.equal(await other.node(), other.home);
    assert.deepEqual(other.disconnects, [], `a client of ${other.home}`);
  }
});

test('polling clients of a killed node come back on another as well', async (t) => {
  const balancer = await started(t, { affinity: COOKIE, balance: 'round_robin' });
  const clients = await crowd(balancer, 9, { transports: ['polling'] });
  const victims = clients.filter((client) => client.home === 'ws1');
  assert.ok(victims.length > 0);
  await fleet.kill('ws1');
  for (const victim of victims) {
    await victim.connected(2);
    assert.notEqual(await victim.node(), 'ws1');
  }
  for (const other of clients.filter((client) => client.home !== 'ws1')) {
    assert.equal(await other.node(), other.home);
    assert.deepEqual(other.disconnects, [], `a client of ${other.home}`);
  }
});

test('a new client never meets the dead node, not even before a probe has found it', async (t) => {
  const balancer = await started(t, { affinity: [], balance: 'round_robin' });
  await fleet.kill('ws3');
  for (let n = 0; n < 12; n += 1) {
    const client = await new User().connect(balancer.url, WEBSOCKET);
    assert.notEqual(await client.node(), 'ws3');
    assert.deepEqual(client.faults, []);
  }
});

test('a node that comes back gets clients again', async (t) => {
  const balancer = await started(t, { affinity: [], balance: 'round_robin' });
  await fleet.kill('ws3');
  await balancer.sees('ws3', 'down');
  await fleet.revive('ws3');
  await balancer.sees('ws3', 'up');
  // A node may be eased in, so it need not be the very next client.
  await until('a client on ws3', async () => (await new User().visit(balancer.url, WEBSOCKET)) === 'ws3');
});

test('a node whose health answers 503 keeps its clients and gets no new ones until it is well', async (t) => {
  const balancer = await started(t, { affinity: [], balance: 'round_robin' });
  const clients = await crowd(balancer, 6, WEBSOCKET);
  await fleet.node('ws2').answerHealth(503);
  await balancer.sees('ws2', 'down');
  for (let n = 0; n < 8; n += 1) assert.notEqual(await new User().visit(balancer.url, WEBSOCKET), 'ws2');
  for (const client of clients) {
    assert.equal(await client.node(), client.home);
    assert.deepEqual(client.disconnects, []);
  }
  await fleet.node('ws2').answerHealth(200);
  await balancer.sees('ws2', 'up');
  await until('a client on ws2', async () => (await new User().visit(balancer.url, WEBSOCKET)) === 'ws2');
});

test('with every node down the answer is 503 with Retry-After, and service resumes with the first node', async (t) => {
  const balancer = await started(t, { affinity: COOKIE, balance: 'round_robin' });
  for (const name of fleet.names) await fleet.kill(name);
  for (const name of fleet.names) await balancer.sees(name, 'down');
  const refused = await new User().get(`${balancer.url}/socket.io/?EIO=4&transport=polling`);
  assert.equal(refused.status, 503);
  assert.match(refused.headers['retry-after'] ?? '', /^\d+$/);
  await fleet.revive('ws2');
  await balancer.sees('ws2', 'up');
  assert.equal(await new User().visit(balancer.url), 'ws2');
});

async function started(t, pool) {
  const balancer = await Balancer.start(config(fleet, pool));
  t.after(() => balancer.stop());
  return balancer;
}

/** That many users with a jar, all at once; each client knows where it landed as `home`. */
async function crowd(balancer, count, options = {}) {
  const users = Array.from({ length: count }, () => new User({ cookies: true }));
  const clients = await Promise.all(users.map((user) => user.connect(balancer.url, options)));
  await Promise.all(clients.map(async (client) => (client.home = await client.node())));
  return clients;
}

function byNode(clients) {
  const groups = new Map();
  for (const client of clients) groups.set(client.home, [...(groups.get(client.home) ?? []), client]);
  return groups;
}
