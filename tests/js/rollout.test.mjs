// A full rollout of three nodes under clients of eight libraries: every one is back, each came back at most once.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Balancer, config } from './lib/balancer.mjs';
import { Child } from './lib/child.mjs';
import { everyTongue } from './lib/tongues.mjs';
import { until, within } from './lib/wait.mjs';

const PROGRAM = fileURLToPath(new URL('lib/tongues-node.mjs', import.meta.url));
const EACH = 3;
/** Some libraries wait for seconds before they come back. */
const BACK_MS = 60_000;

/** What was begun, in the order in which it ends: nobody is left to come back to what is gone. */
const begun = { clients: [], balancer: [], nodes: [] };
after(async () => {
  for (const parts of Object.values(begun)) await Promise.all(parts.map((end) => end()));
});

test('a rollout of three nodes closes each client once, with 1012, and every one is back', async (t) => {
  const old = await Promise.all(['a', 'b', 'c'].map((name) => start(name, 'v1')));
  const pool = { affinity: [{ engine_io: {} }], drain: { over: '2s' } };
  const made = (nodes) => config({ listed: nodes.map(({ listed }) => listed) }, pool);
  const balancer = await Balancer.start(made(old));
  begun.balancer.push(() => balancer.stop());
  const clients = everyTongue(balancer.address, EACH);
  begun.clients.push(...clients.map((client) => client.end));
  await until(() => `all are there: ${missing(clients)}`, () => clients.every(({ home }) => home), BACK_MS);
  for (const { listed } of old) {
    assert.ok(clients.some(({ home }) => home === listed.id), `somebody is on ${listed.id}`);
  }

  const nodes = [...old];
  for (const [at, name] of ['d', 'e', 'f'].entries()) {
    const leaving = nodes[at];
    nodes[at] = await start(name, 'v2');
    await reload(balancer, made(nodes));
    const left = () => clients.filter(({ home }) => home === leaving.listed.id);
    await until(() => `${leaving.listed.id} is left: ${missing(left())}`, () => left().length === 0, BACK_MS);
    await leaving.child.stop();
  }

  for (const { library, homes, codes } of clients) {
    const what = `${library}: came to ${homes}, saw ${codes}`;
    assert.ok(['a', 'b', 'c'].includes(homes[0]) && ['d', 'e', 'f'].includes(homes[1]), what);
    assert.equal(homes.length, 2, what);
    assert.deepEqual(codes, [1012], what);
  }
  for (const [library, group] of grouped(clients)) {
    t.diagnostic(`${library}: ${group.map(({ homes, codes }) => `${homes.join(' > ')} (${codes})`).join(', ')}`);
  }
});

function grouped(clients) {
  const groups = new Map();
  for (const client of clients) groups.set(client.library, [...(groups.get(client.library) ?? []), client]);
  return groups;
}

function missing(clients) {
  return clients.map(({ library, homes, codes }) => `${library} [${homes}] [${codes}]`).join(', ');
}

/** A node of a release in a process of its own. */
async function start(name, release) {
  const env = { ...process.env, NAME: name };
  const child = new Child(name, process.execPath, [PROGRAM], { env, stdio: ['ignore', 'pipe', 'pipe', 'ipc'] });
  begun.nodes.push(() => child.stop());
  const told = once(child.process, 'message').then(([message]) => message);
  const ended = child.ended.then(() => Promise.reject(child.fault(`${name} ended before it listened`)));
  ended.catch(() => {}); // the race below is what looks at it
  const { port } = await within(Promise.race([told, ended]), () => child.fault(`${name} listens`).message);
  return { child, listed: { id: name, address: `127.0.0.1:${port}`, release } };
}

/** Another config takes effect; the balancer, which watches the file, may have been faster. */
async function reload(balancer, made) {
  await writeFile(join(balancer.folder, 'balancer.yaml'), JSON.stringify(made));
  const answer = await fetch(`http://${balancer.admin}/api/reload`, { method: 'POST' });
  assert.equal(answer.status, 200, await answer.text());
}
