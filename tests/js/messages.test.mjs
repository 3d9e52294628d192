// What goes through arrives: large, many, in order, both ways, also while a session changes its transport.

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { after, afterEach, before, test } from 'node:test';

import { Balancer, config } from './lib/balancer.mjs';
import { closeClients, User } from './lib/client.mjs';
import { Fleet } from './lib/fleet.mjs';

const MIB = 1024 * 1024;
const MANY = 5000;

let fleet;
let balancer;
before(async () => {
  fleet = await Fleet.start({ names: ['ws1', 'ws2'] });
  balancer = await Balancer.start(config(fleet, { affinity: [{ cookie: { name: 'mainstay' } }] }));
});
afterEach(closeClients);
after(async () => {
  await balancer?.stop();
  await fleet?.stop();
});

for (const transports of [['websocket'], ['polling']]) {
  test(`a binary message of 1 MiB goes and comes back over ${transports}`, async () => {
    const client = await connect({ transports });
    for (const size of [MIB, MIB - 1, 65536, 65535, 126, 125, 1]) {
      const sent = randomBytes(size);
      const got = Buffer.from(await client.ask('echo', sent));
      assert.equal(digest(got), digest(sent), `${size} bytes`);
    }
    assert.deepEqual(client.disconnects, []);
  });

  test(`${MANY} small messages to the node arrive in order over ${transports}`, async () => {
    const client = await connect({ transports });
    for (let n = 0; n < MANY; n += 1) client.socket.emit('keep', n);
    assert.deepEqual(await client.ask('kept'), range(MANY));
  });

  test(`${MANY} small messages from the node arrive in order over ${transports}`, async () => {
    const client = await connect({ transports });
    const heard = client.hearsAll('streamed', MANY);
    client.socket.emit('stream', MANY);
    assert.deepEqual(await heard, range(MANY));
  });
}

test('messages sent while polling becomes websocket are neither lost nor out of order', async () => {
  const client = await connect({});
  const heard = client.hearsAll('streamed', MANY);
  client.socket.emit('stream', MANY);
  let sent = 0;
  const upgraded = client.upgraded();
  for (let done = false; !done;) {
    client.socket.emit('keep', sent);
    sent += 1;
    done = await Promise.race([upgraded.then(() => true), new Promise((resolve) => setImmediate(resolve, false))]);
  }
  assert.equal(client.transport, 'websocket');
  assert.deepEqual(await client.ask('kept'), range(sent));
  assert.deepEqual(await heard, range(MANY));
});

test('large messages of many clients at once do not mix', async () => {
  const clients = await Promise.all(Array.from({ length: 8 }, () => connect({ transports: ['websocket'] })));
  await Promise.all(clients.map(async (client) => {
    for (let n = 0; n < 4; n += 1) {
      const sent = randomBytes(MIB / 2);
      assert.equal(digest(Buffer.from(await client.ask('echo', sent))), digest(sent));
    }
  }));
});

function connect(options) {
  return new User({ cookies: true }).connect(balancer.url, options);
}

function range(count) {
  return Array.from({ length: count }, (_, n) => n);
}

function digest(bytes) {
  return createHash('sha256').update(bytes).digest('hex');
}
