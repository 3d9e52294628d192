// A real socket.io-client that stands for one user: its own source address and, if wanted, its own cookie jar.
//
// The jar is an http.Agent, so it serves polling and WebSocket alike and outlives reconnections, as a browser's does.

import { Agent, get } from 'node:http';

import { io } from 'socket.io-client';

import { within } from './wait.mjs';

/** Who connects: `from` is a loopback source address, `cookies: true` gives it a jar, `keepAlive: false` makes each of its
 * requests come on a connection of its own. */
export class User {
  constructor({ cookies = false, from = '127.0.0.1', keepAlive = true } = {}) {
    this.agent = cookies ? new CookieAgent({ keepAlive, localAddress: from })
      : new Agent({ keepAlive, localAddress: from });
    this.from = from;
  }

  get cookies() {
    return this.agent.jar ?? new Map();
  }

  /** Connects to the balancer (or to a node) at `url`; `options` are socket.io-client's. */
  async connect(url, options = {}) {
    const client = new Client(io(url, {
      agent: this.agent,
      forceNew: true,
      reconnectionDelay: 50,
      reconnectionDelayMax: 500,
      timeout: 10_000,
      ...options,
    }));
    try {
      await client.connected(1);
    } catch (error) {
      client.close();
      throw error;
    }
    return client;
  }

  /** The node that a new connection of this user lands on; the connection is closed again. */
  async visit(url, options = {}) {
    const client = await this.connect(url, options);
    try {
      return await client.node();
    } finally {
      client.close();
    }
  }

  /** A plain GET as this user: { status, headers, text }. */
  async get(url) {
    const answer = new Promise((resolve, reject) => {
      get(url, { agent: this.agent }, (response) => {
        let text = '';
        response.setEncoding('utf8').on('data', (part) => (text += part));
        response.on('end', () => resolve({ status: response.statusCode, headers: response.headers, text }));
      }).on('error', reject);
    });
    return within(answer, `an answer of ${url}`);
  }
}

const open = new Set();

/** Closes what a test has left open, so that a failed test keeps no client (and no process) going. */
export function closeClients() {
  for (const client of [...open]) client.close();
}

export class Client {
  constructor(socket) {
    open.add(this);
    this.socket = socket;
    this.connects = 0;
    this.disconnects = [];
    this.faults = [];
    socket.on('connect', () => (this.connects += 1));
    socket.on('disconnect', (reason) => this.disconnects.push(reason));
    socket.on('connect_error', (error) => this.faults.push(describe(error)));
  }

  get transport() {
    return this.socket.io.engine.transport.name;
  }

  /** Until it has connected `times` times in all and is connected now. */
  async connected(times) {
    const ready = () => this.connects >= times && this.socket.connected;
    await within(this.#when('connect', ready),
      () => `connected ${times} times; so far ${this.connects}, the last disconnects ` +
        `${JSON.stringify(this.disconnects.slice(-3))}, the last faults ${JSON.stringify(this.faults.slice(-3))}`);
  }

  /** Until polling has become WebSocket. */
  async upgraded() {
    if (this.transport === 'websocket') return;
    const { engine } = this.socket.io;
    await within(new Promise((resolve) => engine.once('upgrade', resolve)), 'the upgrade to websocket');
  }

  /** Emits and awaits the acknowledgement. */
  async ask(event, ...args) {
    return within(this.socket.emitWithAck(event, ...args), `an answer to ${event}`);
  }

  async whoami() {
    return this.ask('whoami');
  }

  async node() {
    return (await this.whoami()).node;
  }

  /** The next value that comes with `event`. */
  async hears(event) {
    return within(new Promise((resolve) => this.socket.once(event, resolve)), `the event ${event}`);
  }

  /** The next `count` values that come with `event`, in their order. */
  async hearsAll(event, count) {
    const values = [];
    const all = new Promise((resolve) => {
      this.socket.on(event, (value) => {
        values.push(value);
        if (values.length === count) resolve();
      });
    });
    await within(all, () => `${count} times ${event}, ${values.length} came`);
    return values;
  }

  close() {
    open.delete(this);
    this.socket.disconnect();
  }

  #when(event, ready) {
    return new Promise((resolve) => {
      if (ready()) return resolve();
      const check = () => {
        if (!ready()) return;
        this.socket.off(event, check);
        resolve();
      };
      this.socket.on(event, check);
    });
  }
}

/** Stores what Set-Cookie says and sends it with every request and every WebSocket handshake. One host, so no domains. */
class CookieAgent extends Agent {
  jar = new Map();

  addRequest(request, options) {
    if (this.jar.size > 0) {
      request.setHeader('cookie', [...this.jar].map(([name, value]) => `${name}=${value}`).join('; '));
    }
    const learn = (response) => {
      for (const line of response.headers['set-cookie'] ?? []) this.#store(line);
    };
    request.prependListener('response', learn).prependListener('upgrade', learn);
    super.addRequest(request, options);
  }

  #store(line) {
    const [pair, ...attributes] = line.split(';').map((part) => part.trim());
    const at = pair.indexOf('=');
    const [name, value] = [pair.slice(0, at), pair.slice(at + 1)];
    const gone = attributes.some((attribute) => /^max-age=0*$/i.test(attribute));
    if (gone) this.jar.delete(name);
    else this.jar.set(name, value);
  }
}

function describe(error) {
  const cause = error.description?.message ?? error.description ?? error.context?.responseText ?? '';
  return `${error.message} ${typeof cause === 'object' ? '' : cause}`.trim();
}
