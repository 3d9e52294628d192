// Sessions that real Socket.IO servers open by polling, under `connections_per_client`.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';

import { Balancer, config } from './lib/balancer.mjs';
import { closeClients, User } from './lib/client.mjs';
import { Fleet } from './lib/fleet.mjs';

/** With room for the connections of two clients that poll and upgrade, beside fetch's own. */
const MOST = 12;

let fleet;
before(async () => (fleet = await Fleet.start()));
afterEach(closeClients);
after(() => fleet?.stop());

test('a client opens as many polling sessions as it may have, and an upgraded one makes room', async (t) => {
  const balancer = await Balancer.start({
    ...config(fleet, { affinity: [{ engine_io: {} }], balance: 'round_robin' }),
    limits: { connections_per_client: MOST },
  });
  t.after(() => balancer.stop());
  const open = () => fetch(`${balancer.url}/socket.io/?EIO=4&transport=polling`);
  // Two that upgrade count as connections, and no more as sessions.
  for (let n = 0; n < 2; n += 1) {
    const client = await new User().connect(balancer.url, { transports: ['polling', 'websocket'] });
    await client.upgraded();
  }
  const sids = [];
  for (let n = 0; n < MOST; n += 1) {
    const answer = await open();
    const text = await answer.text();
    assert.equal(answer.status, 200, text);
    sids.push(JSON.parse(text.slice(1)).sid);
  }
  const over = await open();
  assert.equal(over.status, 429);
  assert.ok(over.headers.get('retry-after') >= 1);
  for (const sid of sids) {
    const url = `${balancer.url}/socket.io/?EIO=4&transport=polling&sid=${encodeURIComponent(sid)}`;
    const post = await fetch(url, { method: 'POST', body: '40' });
    assert.deepEqual([post.status, await post.text()], [200, 'ok'], 'those that are open go on');
  }
});
