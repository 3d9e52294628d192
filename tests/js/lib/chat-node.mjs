// A Socket.IO server as users run it, in a process of its own: one member of a fleet that shares a Redis adapter.
//
// From the environment: NAME, PORT (0: any), REDIS (path of its Unix socket; empty: no adapter), COOKIE (name of a
// cookie that the node sets to its own name; empty: none). It tells its port over IPC and takes orders there:
// {health: STATUS} sets the answer of /health. It ends when its parent does.

import { createServer } from 'node:http';

import { createAdapter } from '@socket.io/redis-adapter';
import { createClient } from 'redis';
import { Server } from 'socket.io';

const { NAME, PORT = '0', REDIS = '', COOKIE = '' } = process.env;
const MAX_MESSAGE = 4 * 1024 * 1024;
let health = 200;

const http = createServer((request, response) => {
  if (request.url !== '/health') {
    response.writeHead(404).end();
    return;
  }
  response.writeHead(health, { 'content-type': 'application/json' });
  response.end(JSON.stringify({ status: health === 200 ? 'ok' : 'unwell', node: NAME }));
});

const io = new Server(http, {
  maxHttpBufferSize: MAX_MESSAGE,
  adapter: REDIS === '' ? undefined : await sharedAdapter(REDIS),
  cors: { origin: 'http://app.example', credentials: true, exposedHeaders: ['x-node'] },
});
// Before Socket.IO answers, so that a preflight (which its CORS layer ends) tells its node as well.
http.prependListener('request', (_, response) => response.setHeader('x-node', NAME));
if (COOKIE !== '') {
  io.engine.on('initial_headers', (headers) => {
    headers['set-cookie'] = `${COOKIE}=${NAME}; Path=/; HttpOnly; SameSite=Lax`;
  });
}

io.on('connection', (socket) => {
  const received = [];
  socket.on('whoami', (answer) => {
    const { address, headers } = socket.handshake;
    answer({ node: NAME, transport: socket.conn.transport.name, address, headers });
  });
  socket.on('echo', (value, answer) => answer(value));
  socket.on('keep', (value) => received.push(value));
  socket.on('kept', (answer) => answer(received));
  socket.on('stream', (count) => {
    for (let n = 0; n < count; n += 1) socket.emit('streamed', n);
  });
  socket.on('shout', (text) => io.emit('shouted', { from: NAME, text }));
  socket.on('join', (room, answer) => {
    socket.join(room);
    answer();
  });
  socket.on('tell', (room, text) => io.to(room).emit('told', { from: NAME, room, text }));
});

process.on('message', (order) => {
  if (order.health !== undefined) health = order.health;
  process.send({ done: order });
});
process.on('disconnect', () => process.exit(0));
process.on('SIGTERM', () => process.exit(0));

http.listen(Number(PORT), '127.0.0.1', () => process.send({ port: http.address().port }));

async function sharedAdapter(path) {
  const publisher = createClient({ socket: { path } });
  const subscriber = publisher.duplicate();
  // Redis goes away at the end of a test, sometimes before this process does.
  for (const client of [publisher, subscriber]) client.on('error', () => {});
  await Promise.all([publisher.connect(), subscriber.connect()]);
  return createAdapter(publisher, subscriber);
}
