// Engine.IO and Socket.IO spoken by hand: a polling session and a WebSocket that say and hear packets as they are on
// the wire.

import { once } from 'node:events';

import WebSocket from 'ws';

import { until, within } from './wait.mjs';

const BETWEEN = '\x1e';

/** Where a request goes; `words` are parts of the query, as `EIO=4`. */
export function place(node, ...words) {
  return `${node.url}/socket.io/?${words.join('&')}`;
}

/** A session that polls. */
export class Polling {
  static async open(node) {
    const { status, text } = await ask(place(node, 'EIO=4', 'transport=polling'));
    if (status !== 200) throw new Error(`no session: ${status} ${text}`);
    return new Polling(node, JSON.parse(text.slice(1)).sid);
  }

  constructor(node, sid) {
    Object.assign(this, { node, sid, url: place(node, 'EIO=4', 'transport=polling', `sid=${sid}`) });
  }

  /** The answer to a GET: { status, text }. */
  get() {
    return ask(this.url);
  }

  /** The answer to a POST of these packets. */
  post(...packets) {
    return ask(this.url, { method: 'POST', body: packets.join(BETWEEN) });
  }

  /** The packets of the next GET. */
  async packets() {
    const { status, text } = await this.get();
    if (status !== 200) throw new Error(`no packets: ${status} ${text}`);
    return text.split(BETWEEN);
  }
}

/** A WebSocket that keeps what it heard: text as text, bytes as a Buffer. */
export class Wire {
  /** With the query's words, or those of a new session. */
  constructor(node, ...words) {
    const query = words.length > 0 ? words : ['EIO=4', 'transport=websocket'];
    this.socket = new WebSocket(place(node, ...query).replace('http', 'ws'));
    this.frames = [];
    this.opened = once(this.socket, 'open');
    this.opened.catch(() => {});
    this.closed = new Promise((resolve) => this.socket.once('close', (code) => resolve(code)));
    this.socket.on('message', (data, isBinary) => this.frames.push(isBinary ? data : String(data)));
    this.socket.on('error', () => {});
  }

  /** A new session, its open packet read. */
  static async open(node) {
    const wire = new Wire(node);
    wire.handshake = JSON.parse((await wire.next()).slice(1));
    return wire;
  }

  /** A new session that is in `/`, with its `sid` (and `pid`) there. A ping that came before stays unread. */
  static async connect(node, auth = '') {
    const wire = await Wire.open(node);
    wire.say(`40${auth}`);
    const greeting = () => wire.frames.findIndex((frame) => frame.startsWith('40'));
    await until('an answer to CONNECT', () => greeting() >= 0);
    Object.assign(wire, JSON.parse(wire.frames.splice(greeting(), 1)[0].slice(2)));
    return wire;
  }

  say(...frames) {
    for (const frame of frames) this.socket.send(frame);
  }

  /** The next frame. */
  async next() {
    const where = () => `a frame; the socket is ${this.isOver ? 'closed' : 'open'}`;
    await until(where, () => this.frames.length > 0);
    return this.frames.shift();
  }

  /** Says something and gives the next frame. */
  answer(...frames) {
    this.say(...frames);
    return this.next();
  }

  get isOver() {
    return this.socket.readyState >= WebSocket.CLOSING;
  }

  close() {
    this.socket.terminate();
  }
}

/** Asks by HTTP: { status, text }. */
export async function ask(url, options = {}) {
  const response = await within(fetch(url, options), `an answer of ${url}`);
  return { status: response.status, text: await response.text() };
}
