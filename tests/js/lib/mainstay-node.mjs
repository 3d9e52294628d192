// The node as a user starts it: the built binary, its address read from its log.
//
// MAINSTAY_NODE_BIN names the binary; else it is the debug build of this work tree.

import { access } from 'node:fs/promises';
import { join, resolve } from 'node:path';

import { ROOT } from './balancer.mjs';
import { Child } from './child.mjs';

const LISTENING = /\bnode open\b.*?\baddress"?[=:]\s*"?([^\s",]+)/;

export class MainstayNode {
  /** With flags beside its name and address. */
  static async start(flags = [], id = 'ws1') {
    const node = new MainstayNode();
    const args = ['--id', id, '--listen', '127.0.0.1:0', ...flags];
    node.child = new Child(`mainstay-node ${id}`, await binary(), args);
    node.address = (await node.child.line(LISTENING))[1];
    node.url = `http://${node.address}`;
    return node;
  }

  stop() {
    return this.child.stop();
  }
}

/** The path of the node's binary. */
async function binary() {
  const built = join(process.env.CARGO_TARGET_DIR ?? 'target', 'debug', 'mainstay-node');
  const path = resolve(ROOT, process.env.MAINSTAY_NODE_BIN ?? built);
  await access(path).catch(() => {
    throw new Error(`there is no ${path}: run "cargo build", or name the binary in MAINSTAY_NODE_BIN`);
  });
  return path;
}
