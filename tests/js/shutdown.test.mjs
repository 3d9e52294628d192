// SIGTERM to the balancer: every client hears 1001, and the process ends with 0.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, before, test } from 'node:test';

import WebSocket from 'ws';

import { Balancer, config } from './lib/balancer.mjs';
import { Fleet } from './lib/fleet.mjs';
import { within } from './lib/wait.mjs';

let fleet;
before(async () => (fleet = await Fleet.start({ names: ['ws1', 'ws2'] })));
after(() => fleet?.stop());

for (const signal of ['SIGTERM', 'SIGINT']) {
  test(`after ${signal} every client sees a close with 1001 and the process exits 0`, async (t) => {
    const settings = { ...config(fleet, { balance: 'round_robin' }), shutdown: { drain: '2s' } };
    const balancer = await Balancer.start(settings);
    t.after(() => balancer.stop());
    const sockets = await Promise.all(Array.from({ length: 6 }, () => session(t, balancer)));
    const closes = sockets.map((socket) => within(once(socket, 'close'), 'the close'));
    balancer.child.signal(signal);
    for (const close of closes) assert.equal((await close)[0], 1001, balancer.child.tail());
    const how = await within(balancer.child.ended, () => balancer.child.fault('the balancer ends').message);
    assert.deepEqual(how, { code: 0, signal: null }, balancer.child.tail());
  });
}

test('a balancer without clients ends at once', async (t) => {
  const balancer = await Balancer.start(config(fleet)); // its drain time is the default of 30 s
  t.after(() => balancer.stop());
  balancer.child.signal('SIGTERM');
  const how = await within(balancer.child.ended, () => balancer.child.fault('the balancer ends').message, 10_000);
  assert.deepEqual(how, { code: 0, signal: null }, balancer.child.tail());
});

/** A WebSocket with an Engine.IO session in it. */
async function session(t, balancer) {
  const socket = new WebSocket(`${balancer.url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket`);
  t.after(() => socket.terminate());
  const [open] = await within(once(socket, 'message'), 'the handshake packet');
  assert.match(String(open), /^0\{"sid":"/);
  return socket;
}
