// Every way a Socket.IO client comes, with every means that keeps it on its node. A request that goes to a foreign
// node is answered with 400 there, which ends the session: a session without a disconnect was sticky throughout.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';

import { Balancer, config } from './lib/balancer.mjs';
import { closeClients, User } from './lib/client.mjs';
import { Fleet } from './lib/fleet.mjs';

const TRANSPORTS = [['polling', 'websocket'], ['polling'], ['websocket']];
const USERS = 6;
const QUESTIONS = 10;

const KEPT_BY = [
  {
    means: 'the balancer\'s cookie',
    affinity: [{ cookie: { name: 'mainstay' } }],
    user: () => new User({ cookies: true }),
  },
  {
    means: 'the node\'s own cookie',
    affinity: [{ cookie: { name: 'io', set_by: 'node' } }],
    user: () => new User({ cookies: true }),
  },
  {
    means: 'the tag in the sid, without a cookie jar',
    affinity: [{ cookie: { name: 'mainstay' } }, { engine_io: {} }],
    user: () => new User(),
  },
  {
    means: 'its address, without a cookie jar',
    affinity: [{ client_ip: {} }],
    user: (n) => new User({ from: `127.${n + 1}.${n}.9` }),
  },
];

let fleet;
before(async () => (fleet = await Fleet.start({ cookie: 'io' })));
afterEach(closeClients);
after(() => fleet?.stop());

for (const { means, affinity, user } of KEPT_BY) {
  for (const transports of TRANSPORTS) {
    test(`${transports.join(' that upgrades to ')} is kept on its node by ${means}`, async (t) => {
      const balancer = await Balancer.start(config(fleet, { affinity, balance: 'round_robin' }));
      t.after(() => balancer.stop());
      const nodes = new Set();
      for (let n = 0; n < USERS; n += 1) {
        const client = await user(n).connect(balancer.url, { transports });
        const { node } = await client.whoami();
        if (transports.length > 1) await client.upgraded();
        for (let i = 0; i < QUESTIONS; i += 1) assert.equal(await client.node(), node, client.faults.join());
        assert.equal(client.transport, transports.at(-1));
        assert.deepEqual(client.disconnects, []);
        nodes.add(node);
      }
      assert.ok(nodes.size > 1, `all ${USERS} users are on ${[...nodes]}`);
    });
  }
}

for (const { means, affinity, user } of KEPT_BY.filter((kept) => !kept.means.includes('sid'))) {
  test(`a user who leaves and comes again is on the same node, by ${means}`, async (t) => {
    const balancer = await Balancer.start(config(fleet, { affinity, balance: 'round_robin', load_bound: 100 }));
    t.after(() => balancer.stop());
    for (let n = 0; n < USERS; n += 1) {
      const someone = user(n);
      const home = await someone.visit(balancer.url);
      for (const transports of [...TRANSPORTS, ...TRANSPORTS]) {
        assert.equal(await someone.visit(balancer.url, { transports }), home, `user ${n} over ${transports}`);
      }
    }
  });
}

test('a user without anything that pins is balanced anew each time', async (t) => {
  const affinity = [{ cookie: { name: 'mainstay' } }];
  const balancer = await Balancer.start(config(fleet, { affinity, balance: 'round_robin' }));
  t.after(() => balancer.stop());
  const someone = new User();
  const nodes = new Set();
  for (let n = 0; n < USERS; n += 1) nodes.add(await someone.visit(balancer.url, { transports: ['websocket'] }));
  assert.deepEqual([...nodes].sort(), fleet.names);
});

test('a preflight with a tagged sid reaches the node of the sid, and so does the poll after it', async (t) => {
  const balancer = await Balancer.start(config(fleet, { affinity: [{ engine_io: {} }], balance: 'round_robin' }));
  t.after(() => balancer.stop());
  const origin = 'http://app.example';
  const path = `${balancer.url}/socket.io/?EIO=4&transport=polling`;
  const nodes = new Set();
  for (let n = 0; n < fleet.names.length * 2; n += 1) {
    const handshake = await fetch(path, { headers: { origin } });
    const text = await handshake.text();
    assert.match(text, /^0\{"sid":"/, `the handshake: ${handshake.status} ${text}`);
    const { sid } = JSON.parse(text.slice(1));
    const node = handshake.headers.get('x-node');
    nodes.add(node);
    for (let i = 0; i < fleet.names.length + 1; i += 1) {
      const preflight = await fetch(`${path}&sid=${encodeURIComponent(sid)}`, {
        method: 'OPTIONS',
        headers: { origin, 'access-control-request-method': 'POST', 'access-control-request-headers': 'x-extra' },
      });
      assert.equal(preflight.headers.get('access-control-allow-origin'), origin);
      assert.equal(preflight.headers.get('x-node'), node, 'the preflight follows the sid');
    }
    const url = `${path}&sid=${encodeURIComponent(sid)}`;
    const post = await fetch(url, { method: 'POST', body: '40', headers: { origin } });
    assert.deepEqual([post.status, await post.text(), post.headers.get('x-node')], [200, 'ok', node]);
    const poll = await fetch(url, { headers: { origin } });
    assert.match(await poll.text(), /^40\{"sid":"/);
  }
  assert.deepEqual([...nodes].sort(), fleet.names, 'each node was asked');
});

test('a node sees who the client is, and the browser\'s origin', async (t) => {
  const balancer = await Balancer.start(config(fleet, { affinity: [{ client_ip: {} }] }));
  t.after(() => balancer.stop());
  for (const transports of TRANSPORTS) {
    const client = await new User({ from: '127.9.8.7' }).connect(balancer.url, { transports });
    const { headers } = await client.whoami();
    assert.equal(headers['x-forwarded-for'], '127.9.8.7');
    assert.equal(headers['x-forwarded-proto'], 'http');
    assert.equal(headers.host ?? headers['x-forwarded-host'], balancer.address);
  }
});
