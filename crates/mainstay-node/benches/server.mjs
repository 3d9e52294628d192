// The Node.js server of the benchmark: socket.io with the words of the node's bundled application, and a Redis streams
// adapter when REDIS names one. It tells its port over IPC and ends with its parent.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';

const require = createRequire(new URL('../../../tests/js/package.json', import.meta.url));
const { Server } = require('socket.io');
const { NAME = 'node', REDIS = '' } = process.env;

const http = createServer((request, response) => {
  response.writeHead(request.url === '/health' ? 200 : 404, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ status: 'ok', node: NAME }));
});
let adapter;
if (REDIS !== '') {
  const { createClient } = require('redis');
  const { createAdapter } = require('@socket.io/redis-streams-adapter');
  const client = createClient({ url: REDIS });
  await client.connect();
  adapter = createAdapter(client);
}
const io = new Server(http, { adapter, transports: ['websocket'], serveClient: false });
io.on('connection', (socket) => {
  const user = socket.handshake.auth.user ?? null;
  socket.on('join', async ({ room }, ack) => { await socket.join(room); ack?.({ ok: true, room }); });
  socket.on('leave', ({ room }, ack) => { socket.leave(room); ack?.({ ok: true, room }); });
  socket.on('publish', ({ room, data }, ack) => {
    socket.to(room).emit('message', { room, from: { user, id: socket.id }, data, node: NAME });
    ack?.({ ok: true, room });
  });
});
process.on('disconnect', () => process.exit(0));
http.listen(0, '127.0.0.1', () => process.send({ port: http.address().port }));
