// Plain HTTP in front of an ordinary Node.js server: what it answers before it was asked the whole question, and what
// curl asks for beside its question.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import http from 'node:http';
import { connect } from 'node:net';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';

import { Balancer } from './lib/balancer.mjs';

const UPLOADS = 10;
const HONEST = 12;
/** Far below `timeouts.request`, which is what a request had to wait once it got a busy connection. */
const AT_ONCE = 10_000;

let server;
let balancer;

before(async () => {
  server = http.createServer((request, response) => {
    // As most handlers do with a path that they do not know: the body is not read.
    if (request.method === 'POST' && request.url === '/early') return response.end('early');
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      const { method, url, headers } = request;
      response.end(JSON.stringify({ method, url, headers, body: Buffer.concat(parts).toString() }));
    });
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  balancer = await Balancer.start({
    listeners: [{ address: '127.0.0.1:0' }],
    admin: { address: '127.0.0.1:0' },
    access_log: { format: 'off' },
    pools: { web: { nodes: [{ id: 'web1', address: `127.0.0.1:${server.address().port}` }], health: null } },
    routes: [{ pool: 'web' }],
  });
});
after(async () => {
  await balancer?.stop();
  server?.closeAllConnections();
  server?.close();
});

function ask(options = {}) {
  return fetch(`${balancer.url}/honest`, { signal: AbortSignal.timeout(AT_ONCE), ...options });
}

/** A POST of 100 MB at 600 bytes a second, and the answer that comes long before its end. */
function upload() {
  const [host, port] = balancer.address.split(':');
  const socket = connect(Number(port), host);
  socket.on('error', () => {});
  socket.write('POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n');
  const trickle = setInterval(() => socket.write(Buffer.alloc(60)), 100);
  socket.on('close', () => clearInterval(trickle));
  let answer = '';
  const answered = new Promise((resolve) => {
    socket.on('data', (part) => {
      answer += part;
      if (answer.endsWith('early')) resolve(answer);
    });
    socket.on('close', () => resolve(answer));
  });
  return { socket, answered };
}

test('ten slow uploads that are answered early hold up nobody', async (t) => {
  const uploads = Array.from({ length: UPLOADS }, upload);
  t.after(() => uploads.forEach(({ socket }) => socket.destroy()));
  for (const { answered } of uploads) assert.match(await answered, /^HTTP\/1\.1 200 .*\r\nconnection: close\r\n/is);
  const statuses = await Promise.all(Array.from({ length: HONEST }, async () => (await ask()).status));
  assert.deepEqual(statuses, Array(HONEST).fill(200));
});

test('a POST that is answered early and the requests behind it all get their own answer', async () => {
  for (let n = 0; n < 20; n += 1) {
    const early = await fetch(`${balancer.url}/early`, { method: 'POST', body: 'x'.repeat(n * 20_000) });
    assert.equal(await early.text(), 'early');
    const { method, body } = await (await ask({ method: 'PUT', body: `${n}` })).json();
    assert.deepEqual([method, body], ['PUT', `${n}`]);
  }
});

test('curl --http2 gets its answer over HTTP/1.1, and the node hears of no upgrade', async (t) => {
  const curl = promisify(execFile);
  const version = await curl('curl', ['--version']).catch(() => null);
  if (!version?.stdout.includes('HTTP2')) return t.skip('no curl that knows HTTP/2');
  const format = '\n%{http_code} %{http_version}';
  for (const [body, args] of [['', []], ['what is sent', ['--data', 'what is sent']]]) {
    const { stdout } = await curl('curl', ['-sS', '--max-time', '10', '--http2', '-w', format, ...args, balancer.url]);
    const [answer, outcome] = stdout.split('\n');
    assert.equal(outcome, '200 1.1');
    const heard = JSON.parse(answer);
    assert.equal(heard.body, body);
    for (const name of ['upgrade', 'http2-settings']) assert.equal(heard.headers[name], undefined, answer);
    assert.doesNotMatch(heard.headers.connection ?? '', /upgrade/i);
  }
});

test('a chunked body on GET reaches the node', async () => {
  const [host, port] = balancer.address.split(':');
  const request = http.request({ host, port, method: 'GET', path: '/g', headers: { 'transfer-encoding': 'chunked' } });
  request.end('a body on GET');
  const [response] = await once(request, 'response');
  let text = '';
  for await (const part of response) text += part;
  assert.equal(JSON.parse(text).body, 'a body on GET');
});
