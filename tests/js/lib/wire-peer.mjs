// A Rust adapter among Node.js servers: `crates/socketio-redis/tests/peers/wire_peer.rs`, driven by lines of JSON.

import { execFileSync } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { Child } from './child.mjs';
import { until, within } from './wait.mjs';

const ROOT = fileURLToPath(new URL('../../..', import.meta.url));

let program;
/** Builds the peer once. */
function built() {
  if (!program) {
    const words = ['build', '-p', 'socketio-redis', '--example', 'wire_peer', '--message-format', 'json'];
    const said = execFileSync('cargo', words, { cwd: ROOT, encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'], maxBuffer: 1 << 28 });
    const messages = said.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line));
    program = messages.find(({ target, executable }) => executable && target?.name === 'wire_peer').executable;
  }
  return program;
}

export class WirePeer {
  static async start(url, kind, prefix) {
    const child = new Child('wire_peer', built(), [url, kind, prefix], { stdio: ['pipe', 'pipe', 'pipe'] });
    const peer = new WirePeer(child);
    await child.line(/"ready":true/);
    return peer;
  }

  constructor(child) {
    this.child = child;
    this.heard = [];
    this.answers = new Map();
    this.last = 0;
    createInterface({ input: child.process.stdout }).on('line', (line) => {
      const said = JSON.parse(line);
      if (said.heard) this.heard.push(said.heard);
      this.answers.get(said.id)?.(said);
    });
  }

  /** Has it do something; gives the result, or fails with its error. */
  async does(what, words = {}) {
    const id = ++this.last;
    const answer = new Promise((resolve) => this.answers.set(id, resolve));
    this.child.process.stdin.write(`${JSON.stringify({ id, do: what, ...words })}\n`);
    const said = await within(answer, () => this.child.fault(`an answer to ${what}`).message);
    this.answers.delete(id);
    if ('error' in said) throw new Error(said.error);
    return said.result;
  }

  /** The next thing that was asked of it, of those that it has not given yet. */
  async hears(operation) {
    const at = () => this.heard.findIndex((heard) => heard.operation === operation);
    await until(() => `the peer hears ${operation}, it heard ${JSON.stringify(this.heard)}`, () => at() >= 0);
    return this.heard.splice(at(), 1)[0];
  }

  async stop() {
    this.child.process.stdin.end();
    return this.child.stop('SIGTERM', 5000);
  }
}
