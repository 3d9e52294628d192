// TLS as the world speaks it: OpenSSL with key updates, Node's ws, Python's ssl, Chromium, Socket.IO over https, and
// a Node.js server behind the balancer.

import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { Agent, createServer as createSecureServer, get } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { promisify } from 'node:util';

import { chromium } from 'playwright-core';
import { WebSocket, WebSocketServer } from 'ws';

import { Balancer, config } from './lib/balancer.mjs';
import { User, closeClients } from './lib/client.mjs';
import { Fleet } from './lib/fleet.mjs';
import { until, within } from './lib/wait.mjs';

const run = promisify(execFile);
const CHROMIUM = process.env.CHROMIUM_BIN ?? '/usr/bin/chromium';
const PAGE = `<!doctype html><title>tls</title><script>
  const socket = new WebSocket('wss://' + location.host + '/echo');
  socket.onopen = () => socket.send('from a browser');
  socket.onmessage = ({ data }) => (document.title = data);
</script>`;

let folder;
let papers;
let authority;
let ca;
let plain;
let secure;
let balancer;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mainstay-tls-'));
  papers = { cert: join(folder, 'site.pem'), key: join(folder, 'site.key') };
  authority = join(folder, 'ca.pem');
  const issue = (name, ...more) => run('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt',
    'ec_paramgen_curve:P-256', '-nodes', '-days', '30', '-subj', `/CN=${name}`, ...more]);
  await issue('an authority', '-keyout', join(folder, 'ca.key'), '-out', authority);
  await issue('localhost', '-CA', authority, '-CAkey', join(folder, 'ca.key'), '-addext', 'basicConstraints=CA:FALSE',
    '-addext', 'subjectAltName=DNS:localhost,IP:127.0.0.1', '-keyout', papers.key, '-out', papers.cert);
  ca = await readFile(authority);
  plain = await echo(createServer());
  secure = await echo(createSecureServer({ key: await readFile(papers.key), cert: await readFile(papers.cert) }));
  balancer = await Balancer.start(front(plain));
});
afterEach(closeClients);
after(async () => {
  await balancer?.stop();
  for (const server of [plain, secure]) server?.closeAllConnections();
  for (const server of [plain, secure]) server?.close();
  await rm(folder, { recursive: true });
});

/** A server that shows the page, says who asks, and echoes messages. */
async function echo(server) {
  server.on('request', (request, response) => {
    const seen = JSON.stringify({ proto: request.headers['x-forwarded-proto'], path: request.url });
    response.setHeader('content-type', request.url === '/' ? 'text/html' : 'application/json');
    response.end(request.url === '/' ? PAGE : seen);
  });
  const sockets = new WebSocketServer({ server });
  sockets.on('connection', (socket) => socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary })));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  return server;
}

/** A balancer with TLS in front of `server`; `pool` adds to its pool. */
function front(server, pool = {}, tls = {}) {
  const nodes = [{ id: 'echo', address: `127.0.0.1:${server.address().port}` }];
  const whole = config({ listed: nodes }, { health: null, ...pool });
  whole.listeners = [{ address: '127.0.0.1:0', tls: { certificates: [papers], ...tls } }];
  return whole;
}

/** A short message of a client's as it is on the wire, with a mask of zeros. */
function frame(text) {
  return Buffer.concat([Buffer.from([0x81, 0x80 | text.length, 0, 0, 0, 0]), Buffer.from(text)]);
}

const UPGRADE = 'GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n'
  + 'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n';

/** openssl s_client, connected; `until` gives what it has printed up to some words. */
async function openssl(version) {
  const child = spawn('openssl', ['s_client', '-connect', balancer.address, '-servername', 'localhost', '-CAfile',
    authority, '-verify_return_error', version]);
  let printed = '';
  let heard = () => {};
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('latin1').on('data', (data) => {
      printed += data;
      heard();
    });
  }
  const until = (words, times = 1) => within(new Promise((resolve) => {
    heard = () => printed.split(words).length > times && resolve();
    heard();
  }), () => `${JSON.stringify(words)} from openssl, which has printed ${printed}`);
  await until('Verify return code: 0 (ok)');
  return { child, until };
}

for (const version of ['-tls1_2', '-tls1_3']) {
  test(`openssl ${version} goes through an upgrade and says and hears messages`, async () => {
    const { child, until } = await openssl(version);
    child.stdin.write(UPGRADE);
    await until('101 Switching Protocols');
    for (const word of ['one', 'two', 'three']) {
      child.stdin.write(frame(`said ${word}`));
      await until(`said ${word}`);
    }
    child.stdin.end();
    await within(once(child, 'close'), 'openssl ends');
  });
}

test('openssl updates its keys with K and k, before and after the upgrade, and is still heard and answered', async () => {
  const { child, until } = await openssl('-tls1_3');
  let updates = 0;
  // K asks for an update in return, k does not.
  const update = async (command) => {
    child.stdin.write(`${command}\n`);
    await until('KEYUPDATE', (updates += 1));
  };
  await update('k');
  await update('K');
  child.stdin.write(UPGRADE);
  await until('101 Switching Protocols');
  for (const [at, command] of ['K', 'k', 'K', 'K', 'k'].entries()) {
    await update(command);
    child.stdin.write(frame(`after ${at}`));
    await until(`after ${at}`);
  }
  child.stdin.end();
  await within(once(child, 'close'), 'openssl ends');
});

for (const version of ['-tls1_2', '-tls1_3']) {
  test(`openssl ${version} resumes on another balancer with the same ticket secret`, async () => {
    const secret = join(folder, 'tickets');
    await run('sh', ['-c', 'echo "k1:$(openssl rand -base64 32)" > "$0"', secret]);
    const two = await Promise.all([1, 2].map(() => Balancer.start(front(plain, {}, { ticket_secret_file: secret }))));
    try {
      const session = join(folder, `session${version}`);
      const visit = (at, ...more) => new Promise((resolve) => {
        const child = execFile('openssl', ['s_client', '-connect', two[at].address, '-servername', 'localhost', '-ign_eof',
          version, ...more], (error, stdout) => resolve(stdout));
        child.stdin.end('GET /who HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n');
      });
      assert.match(await within(visit(0, '-sess_out', session), 'the first visit'), /New, TLSv1/);
      const again = await within(visit(1, '-sess_in', session), 'the second visit');
      assert.match(again, /Reused, TLSv1/);
      assert.match(again, /"proto":"https"/);
    } finally {
      await Promise.all(two.map((one) => one.stop()));
    }
  });
}

test('a Node client speaks wss, also in messages of many records', async () => {
  const socket = new WebSocket(`wss://${balancer.address}/echo`, { ca });
  await within(once(socket, 'open'), 'open');
  for (const size of [0, 1, 16_384, 16_385, 1_000_000]) {
    const sent = Buffer.alloc(size, size % 251);
    socket.send(sent);
    const [data] = await within(once(socket, 'message'), `the echo of ${size} bytes`);
    assert.ok(sent.equals(data));
  }
  socket.close(1000, 'done');
  assert.equal((await within(once(socket, 'close'), 'close'))[0], 1000);
});

const PYTHON = `
import socket, ssl, sys
host, port = sys.argv[1].split(':')
context = ssl.create_default_context(cafile=sys.argv[2])
version = getattr(ssl.TLSVersion, sys.argv[3])
context.minimum_version = context.maximum_version = version
with context.wrap_socket(socket.create_connection((host, int(port)), 10), server_hostname='localhost') as tls:
    tls.sendall(sys.argv[4].encode() + b'\\x81\\x85\\0\\0\\0\\0early')
    seen = b''
    while not seen.endswith(b'\\x81\\x05early'):
        seen += tls.recv(4096)
    assert seen.startswith(b'HTTP/1.1 101 '), seen
    tls.sendall(b'\\x88\\x82\\0\\0\\0\\0\\x03\\xe8')
    assert tls.recv(4096) == b'\\x88\\x02\\x03\\xe8'
    # Whoever ends its stream well has said so in TLS: an end without close_notify would be an error here.
    assert tls.recv(4096) == b''
    print(tls.version(), tls.cipher()[0])
`;

for (const version of ['TLSv1_2', 'TLSv1_3']) {
  test(`a Python client speaks ${version} to a clean end`, async () => {
    const { stdout } = await run('python3', ['-c', PYTHON, balancer.address, authority, version, UPGRADE]);
    assert.match(stdout, new RegExp(version.replace('_', '.')));
  });
}

test('a browser loads a page over https and talks over wss', async () => {
  const browser = await chromium.launch({
    executablePath: CHROMIUM,
    args: ['--no-sandbox', '--disable-gpu', '--ignore-certificate-errors', '--no-first-run', '--disable-background-networking'],
  });
  try {
    const page = await (await browser.newContext({ ignoreHTTPSErrors: true })).newPage();
    await page.goto(`https://${balancer.address}/`);
    await page.waitForFunction(() => document.title === 'from a browser', undefined, { timeout: 20_000 });
  } finally {
    await browser.close();
  }
});

test('Socket.IO over https polls, upgrades and stays on its node', async () => {
  const fleet = await Fleet.start();
  const whole = config(fleet);
  whole.listeners = [{ address: '127.0.0.1:0', tls: { certificates: [papers] } }];
  whole.pools.chat.affinity = [{ engine_io: {} }];
  const entrance = await Balancer.start(whole);
  const agent = new Agent({ ca, keepAlive: true });
  try {
    for (const transports of [['polling', 'websocket'], ['polling'], ['websocket']]) {
      const client = await new User().connect(`https://${entrance.address}`, { agent, ca, transports });
      assert.ok(fleet.names.includes(await client.node()));
      if (transports.includes('websocket')) await client.upgraded();
      assert.ok(fleet.names.includes(await client.node()), 'after the upgrade, too');
      client.close();
    }
  } finally {
    closeClients();
    agent.destroy();
    await entrance.stop();
    await fleet.stop();
  }
});

test('a Node.js server behind the balancer is spoken to over TLS, for requests and for messages', async () => {
  const pool = { tls: { ca: authority, server_name: 'localhost' } };
  const behind = await Balancer.start(front(secure, pool));
  try {
    const socket = new WebSocket(`wss://${behind.address}/echo`, { ca });
    await within(once(socket, 'open'), 'open');
    for (const size of [1, 100_000]) {
      socket.send(Buffer.alloc(size, 7));
      const [data] = await within(once(socket, 'message'), 'an echo');
      assert.equal(data.length, size);
    }
    socket.close(1000);
    await within(once(socket, 'close'), 'close');
    const [response] = await within(once(get(`https://${behind.address}/who`, { ca }), 'response'), 'an answer');
    assert.deepEqual(JSON.parse(Buffer.concat(await response.toArray()).toString()), { proto: 'https', path: '/who' });
  } finally {
    await behind.stop();
  }
});

test('a Node.js server that asks for a client certificate is said to, with either version, and takes the one it is shown', async (t) => {
  const [cert, key] = await Promise.all([readFile(papers.cert), readFile(papers.key)]);
  const nodes = [];
  for (const maxVersion of ['TLSv1.2', 'TLSv1.3']) {
    const asks = { cert, key, ca, requestCert: true, rejectUnauthorized: true, maxVersion };
    const server = createSecureServer(asks, (request, response) => response.end());
    t.after(() => server.close());
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    nodes.push({ id: maxVersion, address: `127.0.0.1:${server.address().port}` });
  }
  const started = async (shown) => {
    const health = { http: { path: '/' }, interval: '500ms', timeout: '500ms', rise: 1 };
    const tls = { ca: authority, server_name: 'localhost', ...shown };
    const balancer = await Balancer.start(config({ listed: nodes }, { health, tls }));
    t.after(() => balancer.stop());
    return balancer;
  };
  const bare = await started({});
  let faults;
  await until(() => `both are said to ask: ${faults}`, async () => {
    const { pools } = await (await fetch(`http://${bare.admin}/api/status`)).json();
    faults = pools[0].nodes.map(({ health }) => health.last_probe?.fault);
    return faults.every((fault) => /asks for a client certificate/.test(fault));
  });
  const shows = await started(papers);
  for (const { id } of nodes) await shows.sees(id, 'up');
});
