// The schema that editors use, in a validator that editors use: it takes what the balancer takes, and says no to slips.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { promisify } from 'node:util';

import Ajv2020 from 'ajv/dist/2020.js';
import { parse } from 'yaml';

import { ROOT, binary } from './lib/balancer.mjs';

let validate;
before(async () => {
  const { stdout } = await promisify(execFile)(await binary(), ['schema']);
  // Strict: an unknown word in the schema itself is an error. `required` stands beside `properties`, types are unions.
  validate = new Ajv2020({ strict: true, strictTypes: false, allErrors: true }).compile(JSON.parse(stdout));
});

/** What the schema has against a text, as `path: message`. */
function faults(text) {
  validate(parse(text, { merge: true }));
  return (validate.errors ?? []).map(({ instancePath, message }) => `${instancePath}: ${message}`);
}

const pool = (more) => `pools: { chat: { nodes: [{ id: ws1, address: "127.0.0.1:3001" }], ${more} } }`;

test('every valid config of the corpus and the reference are valid', async () => {
  const folder = join(ROOT, 'tests/config/valid');
  const names = (await readdir(folder)).filter((name) => name.endsWith('.yaml'));
  assert.ok(names.length >= 6, `${names.length} files`);
  for (const file of [join(ROOT, 'balancer.yaml'), ...names.map((name) => join(folder, name))]) {
    assert.deepEqual(faults(await readFile(file, 'utf8')), [], file);
  }
});

test('the whole contract is valid', () => {
  const text = `
listeners:
  - address: "[::]:8443"
    proxy_protocol: true
    tls:
      certificates: [{ cert: a.pem, key: a.key }]
      client_ca: ca.pem
      min_version: "1.3"
      ticket_secret_file: tickets
admin: { address: "0.0.0.0:9090", token_file: token }
trusted_proxies: [10.0.0.0/8, "fd00::1"]
limits: { connections: 1000, connections_per_client: 10, handshakes_per_second: 100 }
${pool('messages: { ping: 30s }, rebalance: { over: 10m, tolerance: 1.1, quiet_first: true }, source_addresses: [10.0.0.2]')}
routes: [{ origins: ["https://example.com", "null"], pool: chat }]`;
  assert.deepEqual(faults(text), []);
});

test('a value from the environment fits everywhere', () => {
  const text = pool('balance: "${BALANCE}", load_bound: "${BOUND:-1.25}", timeouts: { idle: "${IDLE}" }')
    .replace('127.0.0.1:3001', '${HOST}:${PORT}');
  assert.deepEqual(faults(text), []);
});

const WRONG = [
  ['unknown-keys.yaml', 8],
  ['wrong-types.yaml', 10],
  ['numbers.yaml', 3],
  ['durations-and-sizes.yaml', 3],
];

for (const [name, least] of WRONG) {
  test(`${name} is refused`, async () => {
    const said = faults(await readFile(join(ROOT, 'tests/config/invalid', name), 'utf8'));
    assert.ok(said.length >= least, said.join('\n') || 'nothing was said');
  });
}

const SLIPS = [
  ['no pools', '{}', 'must have required property'],
  ['a key that is none', pool('idle: 1h'), 'must NOT have additional properties'],
  ['a number without a unit', pool('slow_start: 30'), 'must be string'],
  ['a unit that is none', pool('slow_start: 30sec'), 'must match pattern'],
  ['a word that is none', pool('balance: round-robin'), 'must be equal to one of the allowed values'],
  ['a YAML 1.1 boolean', pool('affinity: [cookie: { partitioned: yes }]'), 'must be boolean'],
  ['two sources in one item', pool('affinity: [{ cookie: {}, engine_io: {} }]'), 'must NOT have more than 1 properties'],
  ['no nodes', 'pools: { chat: { nodes: [] } }', 'must NOT have fewer than 1 items'],
  ['a port without an address', `${pool('balance: round_robin')}\nlisteners: [{ address: ":8080" }]`, 'must match pattern'],
  ['a code after which clients stay away', pool('drain: { code: 1011 }'), 'must be equal to one of the allowed values'],
];

for (const [what, text, message] of SLIPS) {
  test(`${what} is refused`, () => {
    assert.ok(faults(text).some((fault) => fault.includes(message)), faults(text).join('\n') || 'nothing was said');
  });
}
