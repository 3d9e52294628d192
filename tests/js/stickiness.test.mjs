// Many Socket.IO clients behind one address, all by polling, in front of two balancers that know nothing of each other:
// the same key has the same node, always, and no bound parts the requests of a session.

import assert from 'node:assert/strict';
import { connect, createServer } from 'node:net';
import { after, afterEach, before, test } from 'node:test';

import { Balancer, config } from './lib/balancer.mjs';
import { closeClients, User } from './lib/client.mjs';
import { PlainFleet } from './lib/fleet.mjs';

const CLIENTS = 90;
const POLLING = { transports: ['polling'] };
const UPGRADING = { transports: ['polling', 'websocket'] };

let fleet;
before(async () => (fleet = await PlainFleet.start({ kind: 'socket.io' })));
afterEach(closeClients);
after(() => fleet?.stop());

for (const [how, pool] of [
  ['client_ip', { affinity: [{ client_ip: {} }] }],
  ['client_ip under an opted-in bound', { affinity: [{ client_ip: {} }], load_bound: 1.05 }],
  ['engine_io and client_ip under an opted-in bound', { affinity: [{ engine_io: {} }, { client_ip: {} }], load_bound: 1.05 }],
]) {
  for (const options of [POLLING, UPGRADING]) {
    const transports = options.transports.join(' that upgrades to ');
    test(`${CLIENTS} clients behind one address stay whole by ${transports}, under ${how}`, async (t) => {
      const balancers = await Promise.all([1, 2].map(() => Balancer.start(config(fleet, { health: { tcp: {} }, ...pool }))));
      t.after(() => Promise.all(balancers.map((balancer) => balancer.stop())));
      const front = await alternating(balancers);
      t.after(() => front.close());
      // Each request on a connection of its own: every other one goes to the other balancer.
      const clients = await Promise.all(Array.from({ length: CLIENTS }, () =>
        new User({ keepAlive: false }).connect(front.url, { ...options, reconnection: false })));
      if (options === UPGRADING) await Promise.all(clients.map((client) => client.upgraded()));
      const homes = new Set();
      for (const client of clients) {
        homes.add(await client.node());
        assert.equal(await client.ask('echo', 7), 7);
        assert.deepEqual([client.disconnects, client.faults], [[], []]);
      }
      if (!pool.load_bound) assert.equal(homes.size, 1, `one address is on ${[...homes]}`);
    });
  }
}

/** What stands before replicas: a TCP balancer that gives each its turn. */
async function alternating(balancers) {
  let turn = 0;
  const server = createServer((client) => {
    const [host, port] = balancers[turn++ % balancers.length].address.split(':');
    const balancer = connect({ host, port: Number(port) });
    for (const [one, other] of [[client, balancer], [balancer, client]]) {
      one.on('error', () => other.destroy()).on('close', () => other.destroy()).pipe(other);
    }
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return { url: `http://127.0.0.1:${server.address().port}`, close: () => server.close() };
}
