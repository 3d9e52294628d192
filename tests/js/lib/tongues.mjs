// Real clients of eight libraries, as they come from their packages: each connects, is told the name of its node
// whenever it comes to one, and comes back by itself when it is closed. `homes` are the nodes that it came to, in order;
// `codes` the close codes that it saw.

import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { HttpTransportType, HubConnectionBuilder, LogLevel } from '@microsoft/signalr';
import { Centrifuge } from 'centrifuge';
import { createClient } from 'graphql-ws';
import PartySocket from 'partysocket';
import { Socket as Phoenix } from 'phoenix';
import ReconnectingModule from 'reconnecting-websocket';
import { io } from 'socket.io-client';
import WebSocket from 'ws';

import { Child } from './child.mjs';

const Reconnecting = ReconnectingModule.default ?? ReconnectingModule;
const PYTHON = fileURLToPath(new URL('../../.venv/bin/python', import.meta.url));
const PROGRAM = fileURLToPath(new URL('websockets-client.py', import.meta.url));

/** One client. */
class Client {
  homes = [];
  codes = [];

  constructor(library, start, address) {
    this.library = library;
    const codes = this.codes;
    /** The WebSocket of `ws`, which writes down how it was closed. */
    this.WebSocket = class extends WebSocket {
      constructor(...args) {
        super(...args);
        // A library that has let go of one that is still connecting hears no fault, and Node.js would.
        this.on('error', () => {});
        // One that never opened was not closed.
        this.on('open', () => this.on('close', (code) => codes.push(code)));
      }
    };
    this.end = start(this, address);
  }

  comes(home) {
    this.homes.push(home);
  }

  get home() {
    return this.homes.at(-1);
  }
}

const LIBRARIES = {
  'socket.io-client': (client, address) => socketIo(client, address, { transports: ['websocket'] }),
  'socket.io-client, from polling': (client, address) => socketIo(client, address, {}),
  phoenix: (client, address) => {
    const socket = new Phoenix(`ws://${address}/socket`, { transport: client.WebSocket });
    socket.connect();
    socket.channel('lobby').join().receive('ok', ({ home }) => client.comes(home));
    return () => socket.disconnect();
  },
  '@microsoft/signalr': (client, address) => {
    const hub = new HubConnectionBuilder()
      .withUrl(`http://${address}/hub`, {
        transport: HttpTransportType.WebSockets,
        skipNegotiation: true,
        WebSocket: client.WebSocket,
      })
      .withAutomaticReconnect()
      .configureLogging(LogLevel.None)
      .build();
    const ask = async () => client.comes(await hub.invoke('Home'));
    // A failure shows as a client that is not back.
    hub.onreconnected(() => ask().catch(() => {}));
    hub.start().then(ask).catch(() => {});
    return () => hub.stop();
  },
  'graphql-ws': (client, address) => {
    const graphql = createClient({
      url: `ws://${address}/graphql`,
      webSocketImpl: client.WebSocket,
      lazy: false,
      on: { connected: (_, payload) => client.comes(payload.home) },
    });
    return () => graphql.dispose();
  },
  centrifuge: (client, address) => {
    const centrifuge = new Centrifuge(`ws://${address}/connection/websocket`, { websocket: client.WebSocket });
    centrifuge.on('connected', ({ data }) => client.comes(data.home));
    centrifuge.connect();
    return () => centrifuge.disconnect();
  },
  'reconnecting-websocket': (client, address) => {
    const socket = new Reconnecting(`ws://${address}/plain`, [], { WebSocket: client.WebSocket });
    socket.addEventListener('message', ({ data }) => client.comes(String(data)));
    return () => socket.close();
  },
  partysocket: (client, address) => {
    const socket = new PartySocket({ host: address, room: 'lobby', WebSocket: client.WebSocket });
    socket.addEventListener('message', ({ data }) => client.comes(String(data)));
    return () => socket.close();
  },
  'websockets (Python)': (client, address) => {
    const child = new Child('websockets', PYTHON, [PROGRAM, `ws://${address}/plain`]);
    createInterface({ input: child.process.stdout }).on('line', (line) => {
      const [word, value] = line.split(' ');
      if (word === 'home') client.comes(value);
      if (word === 'code') client.codes.push(Number(value));
    });
    return () => child.stop();
  },
};

function socketIo(client, address, options) {
  const socket = io(`http://${address}`, { forceNew: true, ...options });
  socket.on('home', (home) => client.comes(home));
  socket.on('disconnect', (_, details) => {
    // Of the WebSocket's CloseEvent; a client that is ended by itself has none.
    if (details?.context?.code) client.codes.push(details.context.code);
  });
  return () => socket.disconnect();
}

/** `each` clients of each library. */
export function everyTongue(address, each) {
  const makers = Object.entries(LIBRARIES);
  return makers.flatMap(([name, start]) => Array.from({ length: each }, () => new Client(name, start, address)));
}
