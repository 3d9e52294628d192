// Servers of a cluster that a test drives: Rust ones (crates/mainstay-node/tests/peers/peer.rs) and Node.js ones (node-peer.mjs), which take the
// same words; their clients, which keep what they got; and the Redis servers between them.

import { access, mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

import { createClient } from 'redis';
import { io } from 'socket.io-client';

import { ROOT } from './balancer.mjs';
import { Child } from './child.mjs';
import { until, within } from './wait.mjs';

const PROGRAM = fileURLToPath(new URL('node-peer.mjs', import.meta.url));
const RUST = process.env.MAINSTAY_PEER ?? join(process.env.CARGO_TARGET_DIR ?? join(ROOT, 'target'), 'debug/examples/peer');

export class Peer {
  /** `kind` is rust or node; `redis` a Redis or a Cluster of below. */
  static async start(kind, { adapter, redis, recovery = 0, name = kind }) {
    const stdio = ['pipe', 'pipe', 'pipe'];
    if (kind === 'rust') await access(RUST).catch(() => { throw new Error(`no ${RUST}; run cargo build -p mainstay-node --example peer`); });
    const rust = ['--adapter', adapter, '--recovery', String(recovery), '--name', name, ...redis.words];
    const env = { ...process.env, ADAPTER: adapter, REDIS: redis.urls, RECOVERY: String(recovery), NAME: name };
    const child =
      kind === 'rust' ? new Child(name, RUST, rust, { stdio }) : new Child(name, process.execPath, [PROGRAM], { stdio, env });
    const [line] = await child.line(/^\{"ready":.*/);
    return new Peer(kind, child, JSON.parse(line).ready.port);
  }

  constructor(kind, child, port) {
    Object.assign(this, { kind, child, port, next: 1 });
  }

  /** Carries out an operation; gives its result. */
  async call(op, words = {}) {
    const id = this.next++;
    this.child.process.stdin.write(`${JSON.stringify({ id, op, ...words })}\n`);
    const [line] = await this.child.line(new RegExp(`^\\{"id":${id},.*`), `the result of ${op}`);
    const { result, error } = JSON.parse(line);
    if (error !== undefined) throw new Error(`${op}: ${error}`);
    return result;
  }

  /** The events of other servers that it has heard. */
  get heard() {
    return this.child.lines.filter((line) => line.startsWith('{"server":')).map((line) => JSON.parse(line).server);
  }

  /** A client of it, in rooms. */
  async client(rooms = [], { nsp = '/', data = {} } = {}) {
    const options = { transports: ['websocket'], forceNew: true, reconnection: false, auth: { data } };
    const client = new Client(io(`http://127.0.0.1:${this.port}${nsp}`, options));
    await within(new Promise((resolve, reject) => {
      client.socket.once('connect', resolve);
      client.socket.once('connect_error', reject);
    }), `a client of ${this.child.name} connects`);
    if (rooms.length > 0) await within(client.socket.emitWithAck('join', ...rooms), 'a client is in its rooms');
    return client;
  }

  async stop() {
    this.child.process.stdin.end();
    await this.child.stop();
  }
}

/** A client that keeps the events it got, and answers where it is asked to. */
export class Client {
  constructor(socket) {
    this.socket = socket;
    this.got = [];
    this.answer = undefined;
    socket.onAny((event, ...args) => {
      const respond = typeof args.at(-1) === 'function' ? args.pop() : undefined;
      this.got.push([event, ...args]);
      if (respond && this.answer !== undefined) respond(...this.answer);
    });
  }

  get id() {
    return this.socket.id;
  }

  /** What it has got, which is then forgotten. */
  take() {
    return this.got.splice(0);
  }

  close() {
    this.socket.disconnect();
  }
}

/** One redis-server on a Unix socket. */
export class Single {
  static async start() {
    const folder = await mkdtemp(join(tmpdir(), 'mainstay-redis-'));
    const single = new Single(folder, join(folder, 'redis.sock'));
    await single.begin();
    return single;
  }

  constructor(folder, path) {
    Object.assign(this, { folder, path, urls: path, words: ['--redis', `redis+unix://${path}`] });
  }

  async begin() {
    const args = ['--port', '0', '--unixsocket', this.path, '--save', '', '--appendonly', 'no', '--dir', this.folder];
    this.child = new Child('redis-server', 'redis-server', args);
    await this.child.line(/ready to accept connections/i);
  }

  async kill() {
    await this.child.stop('SIGKILL');
  }

  async stop() {
    await this.child.stop();
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Three masters on loopback that share the slots. */
export class Cluster {
  static async start() {
    const folder = await mkdtemp(join(tmpdir(), 'mainstay-cluster-'));
    const ports = await freePorts(3);
    const children = await Promise.all(ports.map(async (port) => {
      const args = ['--port', String(port), '--bind', '127.0.0.1', '--cluster-enabled', 'yes', '--save', ''];
      args.push('--cluster-config-file', join(folder, `${port}.conf`), '--dir', folder);
      const child = new Child(`redis-server ${port}`, 'redis-server', args);
      await child.line(/ready to accept connections/i);
      return child;
    }));
    await unite(ports);
    return new Cluster(folder, ports, children);
  }

  constructor(folder, ports, children) {
    const urls = ports.map((port) => `redis://127.0.0.1:${port}`);
    Object.assign(this, { folder, children, urls: urls.join(','), words: ['--cluster', '--redis', urls[0]] });
  }

  async stop() {
    await Promise.all(this.children.map((child) => child.stop()));
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Makes one cluster of them. */
async function unite(ports) {
  const clients = await Promise.all(ports.map(async (port) => {
    const client = createClient({ url: `redis://127.0.0.1:${port}` });
    await client.connect();
    return client;
  }));
  const bounds = [0, 5461, 10923, 16384];
  for (const [place, client] of clients.entries()) {
    const [from, to] = [String(bounds[place]), String(bounds[place + 1] - 1)];
    await client.sendCommand(['CLUSTER', 'ADDSLOTSRANGE', from, to]);
    await client.sendCommand(['CLUSTER', 'MEET', '127.0.0.1', String(ports[0])]);
  }
  await until('every master knows all slots', async () => {
    const told = await Promise.all(clients.map((client) => client.sendCommand(['CLUSTER', 'INFO'])));
    return told.every((info) => /cluster_state:ok/.test(info) && /cluster_known_nodes:3/.test(info));
  });
  clients.forEach((client) => client.destroy());
}

/** Ports that are free now, and whose bus ports (10,000 above) exist. */
async function freePorts(count) {
  const ports = [];
  while (ports.length < count) {
    const server = createServer();
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const { port } = server.address();
    await new Promise((resolve) => server.close(resolve));
    if (port <= 55_535 && !ports.includes(port)) ports.push(port);
  }
  return ports;
}
