// The set-ups that users have today, as the files of tests/config/valid, started as they are and driven by real clients.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';

import { Balancer, ROOT } from './lib/balancer.mjs';
import { closeClients, User } from './lib/client.mjs';
import { Fleet, PlainFleet } from './lib/fleet.mjs';
import { echoes } from './lib/websocket.mjs';
import { until } from './lib/wait.mjs';

const WEBSOCKET = { transports: ['websocket'] };
const RETURN_MS = 45_000; // over the 30 s of the default ejection
const TRANSPORTS = [undefined, ['polling'], ['websocket']];
// Different /24s, since nginx's ip_hash looks at the first three octets only.
const byAddress = (n) => new User({ from: `127.${n + 1}.${n + 7}.1` });
const byJar = () => new User({ cookies: true });

/** Starts the file's own nodes (by the ids it lists) and a balancer for each test of the block. */
function driven(file, tests) {
  describe(`${file}.yaml`, () => {
    const path = join(ROOT, 'tests', 'config', 'valid', `${file}.yaml`);
    const set = {};
    before(async () => {
      const ids = [...(await readFile(path, 'utf8')).matchAll(/^[^#\n]*\bid:\s*"?([\w.-]+)/gm)].map((match) => match[1]);
      assert.equal(ids.length, 3, `${file} lists three nodes: ${ids}`);
      set.fleet = await Fleet.start({ names: ids, cookie: 'io' });
      set.balancer = await Balancer.startFile(path, set.fleet);
    });
    afterEach(async () => {
      closeClients();
      await set.fleet?.mend();
      await set.balancer?.settled(0);
    });
    after(async () => {
      await set.balancer?.stop();
      await set.fleet?.stop();
    });
    tests(set);
  });
}

for (const file of ['nginx-ip-hash', 'haproxy-balance-source']) {
  driven(file, (set) => {
    test('the same address lands on the same node, over every transport', async () => {
      const homes = new Set();
      for (let n = 0; n < 8; n += 1) {
        const home = await visit(set, byAddress(n));
        homes.add(home);
        for (const transports of TRANSPORTS) {
          assert.equal(await visit(set, byAddress(n), transports && { transports }), home, `address ${n}`);
        }
      }
      assert.ok(homes.size > 1, `eight addresses are all on ${[...homes]}`);
    });
    test('a dead node\'s addresses go elsewhere and come home when it is back', () => deathAndReturn(set, byAddress));
  });
}

driven('nginx-map-cookie-io', (set) => {
  test('the node\'s own cookie brings its user back, over every transport', async () => {
    for (let n = 0; n < 6; n += 1) {
      const user = byJar();
      const home = await visit(set, user);
      assert.equal(user.cookies.get('io'), home);
      for (const transports of TRANSPORTS) {
        assert.equal(await visit(set, user, transports && { transports }), home);
      }
    }
  });

  test('whoever brings io=NODE lands on that node', async () => {
    for (const name of set.fleet.names) {
      const user = byJar();
      user.cookies.set('io', name);
      assert.equal(await visit(set, user), name);
    }
  });

  test('a cookie that names no node is as none', async () => {
    for (const value of ['ws99', '', '%00', 'a'.repeat(3000)]) {
      const user = byJar();
      user.cookies.set('io', value);
      const home = await visit(set, user);
      assert.equal(user.cookies.get('io'), home, 'the node that took it has set its own');
    }
  });

  test('a dead node\'s user is taken by another, whose cookie keeps it there', async () => {
    const user = byJar();
    const client = await user.connect(set.balancer.url);
    const home = await client.node();
    await set.fleet.kill(home);
    await client.connected(2);
    const refuge = await client.node();
    assert.notEqual(refuge, home);
    assert.equal(user.cookies.get('io'), refuge);
    await set.fleet.revive(home);
    assert.equal(await user.visit(set.balancer.url), refuge);
  });
});

driven('socketio-sticky', (set) => {
  for (const transports of TRANSPORTS) {
    for (const [who, make] of [['with a cookie jar', byJar], ['without a cookie jar', () => new User()]]) {
      test(`${transports ?? 'polling that upgrades to websocket'} ${who} stays on its node`, async () => {
        for (let n = 0; n < 4; n += 1) {
          const client = await make().connect(set.balancer.url, transports && { transports });
          const home = await client.node();
          if (!transports) await client.upgraded();
          for (let i = 0; i < 6; i += 1) assert.equal(await client.node(), home);
          assert.deepEqual(client.disconnects, []);
        }
      });
    }
  }

  test('a user with a jar comes back to its node', async () => {
    for (let n = 0; n < 4; n += 1) {
      const user = byJar();
      const home = await visit(set, user);
      for (let i = 0; i < 3; i += 1) assert.equal(await visit(set, user), home);
    }
  });

  test('a dead node\'s clients are taken by the others, which notice nothing', async () => {
    const clients = [];
    for (let n = 0; n < 6; n += 1) {
      const client = await byJar().connect(set.balancer.url);
      await client.upgraded();
      client.home = await client.node();
      clients.push(client);
    }
    const dead = clients[0].home;
    await set.fleet.kill(dead);
    for (const client of clients) {
      if (client.home === dead) {
        await client.connected(2);
        assert.notEqual(await client.node(), dead);
      } else {
        assert.equal(await client.node(), client.home);
        assert.deepEqual(client.disconnects, []);
      }
    }
  });
});

// Nobody who comes from nginx or HAProxy has a route for our probes: each translation serves in front of servers as the
// manuals of their libraries show them.
for (const file of ['nginx-ip-hash', 'nginx-map-cookie-io', 'haproxy-balance-source', 'socketio-sticky']) {
  for (const kind of ['ws', 'socket.io', 'attached']) {
    test(`${file}.yaml serves in front of three plain ${kind} servers`, async (t) => {
      const path = join(ROOT, 'tests', 'config', 'valid', `${file}.yaml`);
      const ids = [...(await readFile(path, 'utf8')).matchAll(/^[^#\n]*\bid:\s*"?([\w.-]+)/gm)].map((match) => match[1]);
      const fleet = await PlainFleet.start({ kind, names: ids });
      t.after(() => fleet.stop());
      const balancer = await Balancer.startFile(path, fleet);
      t.after(() => balancer.stop());
      t.after(closeClients);
      // The second round of probes has found nothing wrong either.
      const probed = async () => (await balancer.metric('health_checks_total')).filter(({ value }) => value >= 2);
      await until('two probes of each node', async () => (await probed()).length >= 3);
      for (const id of ids) await balancer.sees(id, 'up');
      if (kind === 'ws') {
        for (let n = 0; n < 6; n += 1) await echoes(`ws://${balancer.address}/socket.io/`, `hello ${n}`);
        return;
      }
      for (const transports of [undefined, ['polling'], ['websocket']]) {
        const client = await byAddress(3).connect(balancer.url, transports && { transports });
        for (let n = 0; n < 6; n += 1) assert.equal(await client.ask('echo', n), n);
        assert.deepEqual([client.disconnects, client.faults], [[], []]);
      }
    });
  }
}

/** The heart of a hash: only the dead node's users move, and they come home. */
async function deathAndReturn(set, makeUser) {
  const clients = new Map(); // home -> its first user's client
  for (let n = 0; n < 64 && clients.size < 3; n += 1) {
    const user = makeUser(n);
    const home = await visit(set, user);
    if (clients.has(home)) continue;
    clients.set(home, { user, client: await user.connect(set.balancer.url, WEBSOCKET) });
    await set.balancer.settled(clients.size);
    assert.equal(await clients.get(home).client.node(), home);
  }
  assert.equal(clients.size, 3, `64 users reach all nodes, not only ${[...clients.keys()]}`);

  const dead = clients.keys().next().value;
  await set.fleet.kill(dead);
  const { user, client } = clients.get(dead);
  await client.connected(2);
  const refuge = await client.node();
  assert.notEqual(refuge, dead);
  for (const [home, other] of clients) {
    if (home === dead) continue;
    assert.equal(await other.client.node(), home);
    assert.deepEqual(other.client.disconnects, [], `the client on ${home}`);
  }

  await set.fleet.revive(dead);
  // Seen by the probes, or the passive ejection ends; either takes a while that the file decides.
  await until(`a visit at home, on ${dead}`, async () => (await visit(set, user, WEBSOCKET)) === dead, RETURN_MS);
  assert.equal(await client.node(), refuge, 'what was established stays');
}

/** Where the user lands; its tunnel is gone from the balancer's count before this returns. */
async function visit(set, user, options) {
  const before = [...(await set.balancer.tunnels()).values()].reduce((sum, n) => sum + n, 0);
  const node = await user.visit(set.balancer.url, options);
  await set.balancer.settled(before);
  return node;
}
