// A node that speaks many tongues, each as little as its client needs: it takes a client in, says its own name, and
// answers what keeps the client content. One member of a fleet that is rolled out.
//
// From the environment: NAME. It tells its port over IPC and ends when its parent does, or on SIGTERM.

import { createServer } from 'node:http';

import { buildSchema } from 'graphql';
import { makeServer } from 'graphql-ws';
import { Server } from 'socket.io';
import { WebSocketServer } from 'ws';

const { NAME } = process.env;
/** What separates SignalR's messages. */
const END = '\x1e';

const http = createServer((request, response) => {
  if (!request.url.startsWith('/socket.io/')) response.end('ok');
});
const io = new Server(http, { destroyUpgrade: false });
io.on('connection', (socket) => socket.emit('home', NAME));

const graphql = makeServer({
  schema: buildSchema('type Query { home: String }'),
  onConnect: () => ({ home: NAME }),
});

const tongues = {
  '/plain': (socket) => socket.send(NAME),
  '/parties/main/lobby': (socket) => socket.send(NAME),
  '/socket/websocket': phoenix,
  '/hub': signalr,
  '/connection/websocket': centrifuge,
  '/graphql': (socket, request) => {
    let heed = () => {};
    const closed = graphql.opened({
      protocol: socket.protocol,
      send: (text) => new Promise((resolve, reject) => {
        socket.send(text, (error) => (error ? reject(error) : resolve()));
      }),
      close: (code, reason) => socket.close(code, reason),
      onMessage: (heeds) => (heed = heeds),
    }, { request });
    socket.on('message', (text) => heed(String(text)).catch(() => socket.close(1011)));
    socket.once('close', (code, reason) => closed(code, String(reason)));
  },
};

/** Phoenix channels, version 2 of the serializer: [join ref, ref, topic, event, payload]. */
function phoenix(socket) {
  socket.on('message', (text) => {
    const [join, ref, topic, event] = JSON.parse(text);
    const response = event === 'phx_join' ? { home: NAME } : {};
    socket.send(JSON.stringify([join, ref, topic, 'phx_reply', { status: 'ok', response }]));
  });
}

/** SignalR's JSON protocol: a handshake, then invocations (1), completions (3) and pings (6). */
function signalr(socket) {
  socket.on('message', (text) => {
    for (const message of String(text).split(END).filter(Boolean).map((part) => JSON.parse(part))) {
      if (message.protocol) socket.send(`{}${END}`);
      if (message.type === 6) socket.send(JSON.stringify({ type: 6 }) + END);
      if (message.type === 1) {
        socket.send(JSON.stringify({ type: 3, invocationId: message.invocationId, result: NAME }) + END);
      }
    }
  });
}

/** Centrifugo's JSON protocol: a reply to the command `connect`; nothing else is asked here. */
function centrifuge(socket) {
  socket.on('message', (text) => {
    for (const command of String(text).split('\n').filter(Boolean).map((line) => JSON.parse(line))) {
      if (!command.connect) continue;
      const connect = { client: `${NAME}-${command.id}`, version: '0', data: { home: NAME } };
      socket.send(JSON.stringify({ id: command.id, connect }));
    }
  });
}

const sockets = new WebSocketServer({
  noServer: true,
  handleProtocols: (offered) => [...offered][0],
});
http.on('upgrade', (request, socket, head) => {
  const path = request.url.split('?')[0];
  // Socket.IO listens for its own.
  if (path.startsWith('/socket.io/')) return;
  const speak = tongues[path];
  if (!speak) {
    socket.end('HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n');
    return;
  }
  sockets.handleUpgrade(request, socket, head, (client) => {
    client.on('error', () => {});
    speak(client, request);
  });
});

process.on('disconnect', () => process.exit(0));
process.on('SIGTERM', () => process.exit(0));
http.listen(0, '127.0.0.1', () => process.send({ port: http.address().port }));
