// A Socket.IO client over a raw WebSocket, as light as it gets, so that a driver can have thousands; and the servers that
// it is pointed at.

import { fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const require = createRequire(new URL('../../../tests/js/package.json', import.meta.url));
const WebSocket = require('ws');
const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const TARGET = process.env.CARGO_TARGET_DIR ?? `${ROOT}target`;

export class Client {
  /** Connects and enters `/`; `heard` gets every event's packet as text. */
  static async open(url, heard = () => {}) {
    const client = new Client();
    client.ws = new WebSocket(`${url.replace('http', 'ws')}/socket.io/?EIO=4&transport=websocket`, { perMessageDeflate: false });
    client.acks = new Map();
    client.last = 0;
    const entered = new Promise((resolve, reject) => {
      client.ws.on('error', reject);
      client.ws.on('message', (data) => {
        const text = data.toString();
        if (text[0] === '0') client.ws.send('40');
        else if (text === '2') client.ws.send('3');
        else if (text.startsWith('40')) resolve();
        else if (text.startsWith('43')) {
          const number = parseInt(text.slice(2), 10);
          client.acks.get(number)?.(text);
          client.acks.delete(number);
        } else if (text.startsWith('42')) heard(text);
      });
    });
    await entered;
    return client;
  }

  emit(event, argument) {
    this.ws.send(`42${JSON.stringify([event, argument])}`);
  }

  ask(event, argument) {
    const number = this.last += 1;
    this.ws.send(`42${number}${JSON.stringify([event, argument])}`);
    return new Promise((resolve) => this.acks.set(number, resolve));
  }
}

/** Opens `count` clients, some at a time. */
export async function crowd(count, open, atOnce = 50) {
  const clients = [];
  while (clients.length < count) {
    const next = Math.min(atOnce, count - clients.length);
    clients.push(...await Promise.all(Array.from({ length: next }, (_, i) => open(clients.length + i))));
  }
  return clients;
}

/** A Rust node on the core `core` (all when null), from the release build. */
export async function rust(name, flags, core = null) {
  const node = [`${TARGET}/release/mainstay-node`, '--id', name, '--listen', '127.0.0.1:0', '--drain', '0s', ...flags];
  return logged(name, pinned(node, core), /node open\b.*?address=(\S+)/);
}

/** The Node.js server. */
export async function nodejs(name, env, core = null) {
  const file = fileURLToPath(new URL('server.mjs', import.meta.url));
  const execPath = core === null ? process.execPath : 'taskset';
  const execArgv = core === null ? [] : ['-c', String(core), process.execPath];
  const child = fork(file, [], { execPath, execArgv, env: { ...process.env, NAME: name, ...env } });
  const [{ port }] = await once(child, 'message');
  return { name, child, url: `http://127.0.0.1:${port}` };
}

/** The balancer in front of these. */
export async function balancer(nodes, file) {
  const command = [`${TARGET}/release/mainstay`, 'run', '-c', file];
  return logged('balancer', command, /(?<!admin) listening address=(\S+)/);
}

async function logged(name, [program, ...words], pattern) {
  const env = { ...process.env, NO_COLOR: '1', RUST_LOG: 'info' };
  const child = spawn(program, words, { stdio: ['ignore', 'ignore', 'pipe'], env });
  const lines = createInterface({ input: child.stderr });
  const address = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`${name} ended with ${code}`)));
    lines.on('line', (line) => pattern.test(line) && resolve(line.match(pattern)[1]));
  });
  return { name, child, url: `http://${address}` };
}

function pinned(command, core) {
  return core === null ? command : ['taskset', '-c', String(core), ...command];
}

export function end(server) {
  server.child.kill('SIGKILL');
}

/** CPU time of the process in nanoseconds, all of its threads: in its own code, and in the kernel on its behalf. */
export function cpu(server) {
  const fields = readFileSync(`/proc/${server.child.pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return { own: Number(fields[11]) * 1e7, kernel: Number(fields[12]) * 1e7 };
}

/** Memory in RAM, bytes. */
export function memory(server) {
  return Number(readFileSync(`/proc/${server.child.pid}/status`, 'utf8').match(/VmRSS:\s+(\d+)/)[1]) * 1024;
}
