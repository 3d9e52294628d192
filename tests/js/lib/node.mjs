// A node as a user starts it: the built binary, its address read from its log.
//
// MAINSTAY_NODE_BIN names the binary; else it is the debug build of this work tree.

import { access } from 'node:fs/promises';
import { join, resolve } from 'node:path';

import { Child } from './child.mjs';
import { ROOT } from './balancer.mjs';

const OPEN = /\bnode open\b.*?\baddress"?[=:]\s*"?([^\s",]+)/;

export class Node {
  /** With these flags, on a free port of its own unless an address is given. */
  static async start(id, flags = [], address = '127.0.0.1:0') {
    const child = new Child(id, await binary(), ['--id', id, '--listen', address, ...flags], {
      cwd: ROOT,
      env: { ...process.env, NO_COLOR: '1', RUST_LOG: process.env.RUST_LOG ?? 'info' },
    });
    try {
      return new Node(id, child, (await child.line(OPEN))[1]);
    } catch (error) {
      await child.stop('SIGKILL');
      throw error;
    }
  }

  constructor(id, child, address) {
    Object.assign(this, { id, child, address });
  }

  get url() {
    return `http://${this.address}`;
  }

  async health() {
    const answer = await fetch(`${this.url}/health`);
    return { status: answer.status, headers: answer.headers, body: await answer.json() };
  }

  async metrics() {
    return (await fetch(`${this.url}/metrics`)).text();
  }

  stop(signal) {
    return this.child.stop(signal, 15_000);
  }
}

/** The path of the binary under test. */
export async function binary() {
  const built = join(process.env.CARGO_TARGET_DIR ?? 'target', 'debug', 'mainstay-node');
  const path = resolve(ROOT, process.env.MAINSTAY_NODE_BIN ?? built);
  await access(path).catch(() => {
    throw new Error(`there is no ${path}: run "cargo build", or name the binary in MAINSTAY_NODE_BIN`);
  });
  return path;
}
