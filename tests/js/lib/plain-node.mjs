// A server that knows nothing of a balancer, as the manual of its library shows it, in a process of its own.
//
// From the environment: KIND (ws: WebSocketServer on a port, which echoes; socket.io: Server on a port; attached:
// Server on an http server without a handler, which leaves a plain request without an answer; busy: answers every upgrade
// with 503; closing: closes every upgrade without a word; resetting: resets it), NAME, PORT (0: any). It tells its port
// over IPC and ends when its parent does.

import { createServer } from 'node:http';

import { Server } from 'socket.io';
import { WebSocketServer } from 'ws';

const { KIND = 'ws', NAME, PORT = '0' } = process.env;
const BUSY = 'HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 4\r\n\r\nbusy';
const kinds = {
  ws,
  'socket.io': socketIo,
  attached,
  busy: () => refusing((socket) => socket.end(BUSY)),
  closing: () => refusing((socket) => socket.destroy()),
  resetting: () => refusing((socket) => socket.resetAndDestroy()),
};

process.on('disconnect', () => process.exit(0));
process.on('SIGTERM', () => process.exit(0));
kinds[KIND]();

function ws() {
  const server = new WebSocketServer({ host: '127.0.0.1', port: Number(PORT) }, () => told(server));
  server.on('connection', (socket) => {
    socket.on('error', () => {});
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
  });
}

function socketIo() {
  // What `new Server(3000)` makes, on an address of this machine alone.
  const http = createServer((_, response) => response.writeHead(404).end());
  answering(new Server(http));
  http.listen(Number(PORT), '127.0.0.1', () => told(http));
}

function attached() {
  const http = createServer();
  answering(new Server(http));
  http.listen(Number(PORT), '127.0.0.1', () => told(http));
}

function refusing(refuse) {
  const http = createServer((_, response) => response.writeHead(200).end('well'));
  http.on('upgrade', (_, socket) => refuse(socket.on('error', () => {})));
  http.listen(Number(PORT), '127.0.0.1', () => told(http));
}

function answering(io) {
  io.on('connection', (socket) => {
    socket.on('whoami', (answer) => answer({ node: NAME, transport: socket.conn.transport.name }));
    socket.on('echo', (value, answer) => answer(value));
  });
}

function told(server) {
  process.send({ port: server.address().port });
}
