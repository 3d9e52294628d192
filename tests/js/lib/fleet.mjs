// A fleet: a Redis and some Socket.IO nodes around it, each a process that can be killed and brought back on its port.

import { once } from 'node:events';
import { fileURLToPath } from 'node:url';

import { Child } from './child.mjs';
import { Redis } from './redis.mjs';
import { within } from './wait.mjs';

const PLAIN = fileURLToPath(new URL('plain-node.mjs', import.meta.url));
const PROGRAM = fileURLToPath(new URL('chat-node.mjs', import.meta.url));

export class Fleet {
  /** `cookie` names a cookie that every node sets to its own name; none when it is empty. */
  static async start({ names = ['ws1', 'ws2', 'ws3'], cookie = '' } = {}) {
    const redis = await Redis.start();
    const fleet = new Fleet(redis, cookie);
    try {
      const nodes = await Promise.all(names.map((name) => Node.start({ name, redis, cookie })));
      fleet.nodes = new Map(nodes.map((node) => [node.name, node]));
    } catch (error) {
      await fleet.stop();
      throw error;
    }
    return fleet;
  }

  constructor(redis, cookie) {
    Object.assign(this, { redis, cookie, nodes: new Map() });
  }

  get names() {
    return [...this.nodes.keys()];
  }

  node(name) {
    const node = this.nodes.get(name);
    if (!node) throw new Error(`no node is called ${name}; there are ${this.names.join(', ')}`);
    return node;
  }

  /** The nodes as a pool of the balancer's config lists them. */
  get listed() {
    return [...this.nodes.values()].map(({ name, port }) => ({ id: name, address: `127.0.0.1:${port}` }));
  }

  /** SIGKILL: no close frames, the kernel resets its connections. */
  async kill(name) {
    await this.node(name).child.stop('SIGKILL');
  }

  /** Starts it again where it was. */
  async revive(name) {
    const { port } = this.node(name);
    this.nodes.set(name, await Node.start({ name, port, redis: this.redis, cookie: this.cookie }));
  }

  /** Brings back those that a test has killed, well again. */
  async mend() {
    for (const [name, node] of this.nodes) {
      if (node.child.how) await this.revive(name);
      else await node.answerHealth(200);
    }
  }

  async stop() {
    await Promise.all([...this.nodes.values()].map((node) => node.child.stop()));
    await this.redis.stop();
  }
}

/** Servers that know nothing of a balancer; `kind` is one of plain-node.mjs, or says which for each name. */
export class PlainFleet extends Fleet {
  static async start({ kind, names = ['ws1', 'ws2', 'ws3'] }) {
    const fleet = new PlainFleet(kind);
    try {
      const nodes = await Promise.all(names.map((name) => PlainNode.start({ name, kind: kind[name] ?? kind })));
      fleet.nodes = new Map(nodes.map((node) => [node.name, node]));
    } catch (error) {
      await fleet.stop();
      throw error;
    }
    return fleet;
  }

  constructor(kind) {
    super(null, '');
    this.kind = kind;
  }

  async revive(name) {
    const { port } = this.node(name);
    this.nodes.set(name, await PlainNode.start({ name, port, kind: this.kind[name] ?? this.kind }));
  }

  async stop() {
    await Promise.all([...this.nodes.values()].map((node) => node.child.stop()));
  }
}

class Node {
  static async start({ name, port = 0, redis, cookie }) {
    const env = { ...process.env, NAME: name, PORT: String(port), REDIS: redis.path, COOKIE: cookie };
    return new Node(...(await run(name, PROGRAM, env)));
  }

  constructor(name, port, child) {
    Object.assign(this, { name, port, child });
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  async answerHealth(status) {
    const done = once(this.child.process, 'message');
    this.child.process.send({ health: status });
    await within(done, `${this.name} takes its order`);
  }
}

class PlainNode {
  static async start({ name, port = 0, kind }) {
    return new PlainNode(...(await run(name, PLAIN, { ...process.env, NAME: name, PORT: String(port), KIND: kind })));
  }

  constructor(name, port, child) {
    Object.assign(this, { name, port, child });
  }
}

/** Starts a program that tells its port: name, port and child. */
async function run(name, program, env) {
  const stdio = ['ignore', 'pipe', 'pipe', 'ipc'];
  const child = new Child(name, process.execPath, [program], { env, stdio });
  const told = once(child.process, 'message').then(([message]) => message);
  const ended = child.ended.then(() => Promise.reject(child.fault(`${name} ended before it listened`)));
  ended.catch(() => {}); // the race below is what looks at it
  const { port: bound } = await within(Promise.race([told, ended]), () => child.fault(`${name} listens`).message);
  return [name, bound, child];
}
