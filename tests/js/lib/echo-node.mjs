// A plain `ws` server that sends back what it gets, at port 3001 of all addresses; GET /health answers 200.

import { createServer } from 'node:http';

import { WebSocketServer } from 'ws';

const server = createServer((request, response) => response.writeHead(request.url === '/health' ? 200 : 404).end());
new WebSocketServer({ server }).on('connection', (socket) => {
  socket.on('error', () => {});
  socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
});
server.listen(3001, '0.0.0.0', () => console.log('open'));
