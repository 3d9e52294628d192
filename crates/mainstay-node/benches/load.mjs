// A mixed fleet under load: 5,000 Socket.IO clients over two Rust nodes and one Node.js server with the streams adapter,
// behind the balancer; how long a broadcast takes to reach its room, wherever its members are.
//
//   cargo build --release --workspace && node crates/mainstay-node/benches/load.mjs [clients]
//
// Clients sit in rooms of 100, spread over the nodes by the balancer. Messages are sent one at a time; the time is from
// the sender's write to a member's read, in this one driver process, whose own share is in the figures.

import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createServer } from 'node:net';

import { Client, balancer, crowd, end, nodejs, rust } from './client.mjs';

const CLIENTS = Number(process.argv[2] ?? 5000);
const MEMBERS = 100;
const MESSAGES = 1000;
/** The whole run ends by then. */
const LONGEST_MS = 180_000;
setTimeout(() => { console.error('the load run took too long'); process.exit(1); }, LONGEST_MS).unref();

const folder = await mkdtemp(join(tmpdir(), 'mainstay-load-'));
const port = await free();
const redis = spawn('redis-server', ['--port', port, '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no', '--dir', folder], { stdio: 'ignore' });
const url = `redis://127.0.0.1:${port}`;
const fleet = [];
try {
  fleet.push(await rust('ws1', ['--redis', url]), await rust('ws2', ['--redis', url]), await nodejs('ws3', { REDIS: url }));
  const front = await balancer(fleet, await config());
  fleet.push(front);
  const times = [];
  let sent = 0;
  let waiting = 0;
  let all = () => {};
  const heard = () => {
    times.push(performance.now() - sent);
    if ((waiting -= 1) === 0) all();
  };
  const clients = await crowd(CLIENTS, () => Client.open(front.url, heard));
  await Promise.all(clients.map((client, i) => client.ask('join', { room: `room ${Math.floor(i / MEMBERS)}` })));
  let lost = 0;
  for (let n = 0; n < MESSAGES; n += 1) {
    const i = (n * 7919) % CLIENTS;
    const room = Math.floor(i / MEMBERS);
    waiting = Math.min(MEMBERS, CLIENTS - room * MEMBERS) - 1;
    const reached = new Promise((resolve) => { all = resolve; });
    sent = performance.now();
    clients[i].emit('publish', { room: `room ${room}`, data: 'x'.repeat(128) });
    await Promise.race([reached, new Promise((resolve) => setTimeout(resolve, 5000))]);
    lost += waiting;
  }
  times.sort((a, b) => a - b);
  const at = (share) => times[Math.min(times.length - 1, Math.floor(times.length * share))].toFixed(1);
  console.log(`${CLIENTS} clients, 2 Rust nodes and 1 Node.js server, rooms of ${MEMBERS}: ${times.length} deliveries, ${lost} lost`);
  console.log(`broadcast latency: p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, most ${at(1)} ms`);
  process.exitCode = lost === 0 ? 0 : 1;
} finally {
  fleet.forEach(end);
  redis.kill();
  await rm(folder, { recursive: true, force: true });
}
process.exit();

async function config() {
  const file = join(folder, 'balancer.yaml');
  const nodes = fleet.map((node) => ({ id: node.name, address: node.url.replace('http://', '') }));
  await writeFile(file, JSON.stringify({
    listeners: [{ address: '127.0.0.1:0' }], admin: { address: '127.0.0.1:0' }, access_log: { format: 'off' },
    pools: { chat: { nodes, affinity: [], balance: 'round_robin', health: { http: { path: '/health', status: 200 }, interval: '1s', timeout: '1s', rise: 1, fall: 3 } } },
  }));
  return file;
}

async function free() {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port: found } = server.address();
  server.close();
  return String(found);
}
