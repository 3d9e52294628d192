// A node that sends every message back, as Autobahn wants it; with permessage-deflate. Says its port and serves until
// it is killed.

import { createRequire } from 'node:module';

const { WebSocketServer } = createRequire(new URL('../js/package.json', import.meta.url))('ws');

const server = new WebSocketServer({ host: '127.0.0.1', port: 0, perMessageDeflate: true, maxPayload: 64 << 20 });
server.on('listening', () => console.log(server.address().port));
server.on('connection', (socket) => {
  // What a case breaks is the suite's to judge.
  socket.on('error', () => {});
  socket.on('message', (data, binary) => socket.send(data, { binary }));
});
