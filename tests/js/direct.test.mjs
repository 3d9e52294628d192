// The control: one node and no balancer. What fails here is the harness or the machine, not the balancer.

import assert from 'node:assert/strict';
import { after, afterEach, before, test } from 'node:test';

import { closeClients, User } from './lib/client.mjs';
import { Fleet } from './lib/fleet.mjs';
import { until } from './lib/wait.mjs';

let fleet;
before(async () => (fleet = await Fleet.start({ cookie: 'io' })));
afterEach(closeClients);
after(() => fleet?.stop());

for (const transports of [['polling', 'websocket'], ['polling'], ['websocket']]) {
  test(`a user with a jar gets and keeps the node's cookie over ${transports.join(' and ')}`, async () => {
    const user = new User({ cookies: true });
    const client = await user.connect(fleet.node('ws2').url, { transports });
    if (transports.length > 1) await client.upgraded();
    assert.equal(client.transport, transports.at(-1));
    assert.equal(user.cookies.get('io'), 'ws2');
    client.close();
    const again = await user.connect(fleet.node('ws2').url, { transports });
    assert.match((await again.whoami()).headers.cookie ?? '', /\bio=ws2\b/);
  });
}

test('a user without a jar sends no cookie', async () => {
  const client = await new User().connect(fleet.node('ws1').url);
  const { node, headers } = await client.whoami();
  assert.equal(node, 'ws1');
  assert.equal(headers.cookie, undefined);
});

test('a user comes from the address it was given', async () => {
  for (const transports of [['polling'], ['websocket']]) {
    const client = await new User({ from: '127.3.2.1' }).connect(fleet.node('ws1').url, { transports });
    assert.match((await client.whoami()).address, /127\.3\.2\.1$/);
  }
});

test('a broadcast goes from node to node through Redis', async () => {
  const clients = await Promise.all(fleet.names.map((name) => new User().connect(fleet.node(name).url)));
  const heard = clients.map((client) => client.hears('shouted'));
  clients[0].socket.emit('shout', 'ahoy');
  for (const said of await Promise.all(heard)) assert.deepEqual(said, { from: 'ws1', text: 'ahoy' });
});

test('a killed node comes back on its port, and its client with it', async () => {
  const client = await new User().connect(fleet.node('ws3').url);
  await fleet.kill('ws3');
  await until('the client notices', () => client.disconnects.length === 1);
  await fleet.revive('ws3');
  await client.connected(2);
  assert.equal(await client.node(), 'ws3');
});

test('/health says what it was told to say', async () => {
  const url = `${fleet.node('ws1').url}/health`;
  assert.equal((await fetch(url)).status, 200);
  await fleet.node('ws1').answerHealth(503);
  assert.equal((await fetch(url)).status, 503);
  await fleet.mend();
  assert.equal((await fetch(url)).status, 200);
});
