// One child process of a test: started, read line by line, ended. Only children started here are ever signalled, by
// their own handle, and none outlives the test process.

import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

import { within } from './wait.mjs';

const KEPT_LINES = 200;
const SHOWN_LINES = 40;
const living = new Set();
process.on('exit', () => living.forEach((child) => child.signal('SIGKILL')));

export class Child {
  /** `options` are those of spawn; the child's stdout and stderr are kept for `line` and for failures. */
  constructor(name, command, args, options = {}) {
    this.name = name;
    this.lines = [];
    this.waiting = new Set();
    this.process = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'], ...options });
    living.add(this);
    this.ended = new Promise((resolve) => {
      this.process.once('error', (error) => resolve({ code: null, signal: null, error }));
      this.process.once('close', (code, signal) => resolve({ code, signal }));
    });
    this.ended.then((how) => {
      living.delete(this);
      this.how = how;
      const why = how.error?.message ?? `code ${how.code}, signal ${how.signal}`;
      for (const wait of [...this.waiting]) wait.fail(`${this.name} ended (${why})`);
    });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      createInterface({ input: stream }).on('line', (line) => this.#take(line));
    }
  }

  #take(coloured) {
    const line = coloured.replace(/\x1b\[[0-9;]*m/g, '');
    this.lines.push(line);
    if (this.lines.length > KEPT_LINES) this.lines.shift();
    for (const wait of [...this.waiting]) wait.take(line);
  }

  /** The match of the first line, printed already or to come, that fits `pattern`. */
  async line(pattern, what = `a line like ${pattern} from ${this.name}`) {
    for (const line of this.lines) {
      const match = line.match(pattern);
      if (match) return match;
    }
    if (this.how) throw this.fault(`${this.name} has ended without ${what}`);
    let wait;
    const match = new Promise((resolve, reject) => {
      wait = {
        take: (line) => line.match(pattern) && resolve(line.match(pattern)),
        fail: (why) => reject(this.fault(`${why} before ${what}`)),
      };
      this.waiting.add(wait);
    });
    try {
      return await within(match, () => this.fault(what).message);
    } finally {
      this.waiting.delete(wait);
    }
  }

  signal(name) {
    if (!this.how && this.process.exitCode === null) this.process.kill(name);
  }

  /** Asks it to end, and insists when it has not after a while; gives how it ended. */
  async stop(signal = 'SIGTERM', patience = 5000) {
    this.signal(signal);
    try {
      return await within(this.ended, `${this.name} ends after ${signal}`, patience);
    } catch {
      this.signal('SIGKILL');
      return within(this.ended, `${this.name} ends after SIGKILL`);
    }
  }

  fault(message) {
    return new Error(`${message}\n--- last lines of ${this.name} ---\n${this.tail()}`);
  }

  tail() {
    return this.lines.slice(-SHOWN_LINES).join('\n');
  }
}
