// The balancer as a user starts it: the built binary, a config file, addresses read from its log.
//
// MAINSTAY_BIN names the binary; else it is the debug build of this work tree.

import { access, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

import { Child } from './child.mjs';
import { until } from './wait.mjs';

export const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const ANY = '127.0.0.1:0';
const LISTENING = /(?<!admin )\blistening\b.*?\baddress"?[=:]\s*"?([^\s",]+)/;
const ADMIN_LISTENING = /\badmin listening\b.*?\baddress"?[=:]\s*"?([^\s",]+)/;
const SERVING = /\bserving\b/;

/** A config with one pool of the fleet's nodes; `pool` adds to it or replaces parts of it. */
export function config(fleet, pool = {}) {
  return {
    listeners: [{ address: ANY }],
    admin: { address: ANY },
    access_log: { format: 'json', path: 'stdout' },
    pools: {
      chat: {
        nodes: fleet.listed,
        health: { http: { path: '/health', status: 200 }, interval: '200ms', timeout: '1s', rise: 1, fall: 2 },
        ...pool,
      },
    },
    routes: [{ pool: 'chat' }],
  };
}

export class Balancer {
  /** With a config that is written to a file first (JSON is YAML). */
  static async start(config) {
    const folder = await mkdtemp(join(tmpdir(), 'mainstay-'));
    const file = join(folder, 'balancer.yaml');
    await writeFile(file, JSON.stringify(config, null, 2));
    const balancer = await Balancer.run(['-c', file]);
    balancer.folder = folder;
    return balancer;
  }

  /** With a config file of the project as it is; the addresses come from its environment. */
  static async startFile(file, fleet) {
    const ports = Object.fromEntries(fleet.listed.map((node, i) => [`NODE_${i + 1}`, node.address.split(':')[1]]));
    return Balancer.run(['-c', file], { LISTEN: ANY, ADMIN: ANY, ...ports });
  }

  static async demo(nodes = 3) {
    return Balancer.run(['demo', '--nodes', String(nodes), '--port', '0'], {}, false);
  }

  static async run(args, env = {}, hasAdmin = true) {
    const child = new Child('mainstay', await binary(), args, {
      cwd: ROOT,
      env: { ...process.env, NO_COLOR: '1', RUST_LOG: process.env.RUST_LOG ?? 'info', ...env },
    });
    try {
      const address = (await child.line(LISTENING))[1];
      const admin = hasAdmin ? (await child.line(ADMIN_LISTENING))[1] : null;
      await child.line(SERVING);
      return new Balancer(child, address, admin);
    } catch (error) {
      await child.stop('SIGKILL');
      throw error;
    }
  }

  constructor(child, address, admin) {
    Object.assign(this, { child, address, admin, folder: null });
  }

  get url() {
    return `http://${this.address}`;
  }

  /** The samples of one metric: [{ labels: {…}, value }]. */
  async metric(name) {
    const response = await fetch(`http://${this.admin}/metrics`);
    const samples = [];
    for (const line of (await response.text()).split('\n')) {
      const match = line.match(/^(\w+)(?:\{(.*)\})? (\S+)$/);
      if (!match || match[1] !== `mainstay_${name}`) continue;
      const labels = Object.fromEntries([...(match[2] ?? '').matchAll(/(\w+)="([^"]*)"/g)].map((m) => [m[1], m[2]]));
      samples.push({ labels, value: Number(match[3]) });
    }
    return samples;
  }

  /** Live tunnels: Map of node to count, of the nodes that have any. */
  async tunnels() {
    const samples = await this.metric('websocket_connections');
    return new Map(samples.filter(({ value }) => value > 0).map(({ labels, value }) => [labels.node, value]));
  }

  /** Until the balancer counts `total` live tunnels: it has seen every close and every open so far. */
  async settled(total) {
    let seen;
    await until(() => `${total} tunnels, there are ${JSON.stringify([...seen])}`, async () => {
      seen = await this.tunnels();
      return [...seen.values()].reduce((sum, n) => sum + n, 0) === total;
    });
  }

  /** Until the balancer says that the node is in `state`. */
  async sees(node, state) {
    let samples;
    await until(() => `${node} is ${state} for the balancer: ${JSON.stringify(samples)}`, async () => {
      samples = (await this.metric('node_state')).filter(({ labels }) => labels.node === node);
      return samples.some(({ labels, value }) => labels.state === state && value === 1);
    });
  }

  async stop() {
    const how = await this.child.stop();
    if (this.folder) await rm(this.folder, { recursive: true, force: true });
    return how;
  }
}

/** The path of the binary under test. */
export async function binary() {
  const built = join(process.env.CARGO_TARGET_DIR ?? 'target', 'debug', 'mainstay');
  const path = resolve(ROOT, process.env.MAINSTAY_BIN ?? built);
  await access(path).catch(() => {
    throw new Error(`there is no ${path}: run "cargo build", or name the binary in MAINSTAY_BIN`);
  });
  return path;
}
