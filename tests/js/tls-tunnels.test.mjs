// Peers that are not rustls, through a TLS tunnel and to a TLS node: OpenSSL with key updates and a renegotiation,
// Node's tls, Python's ssl. What they send comes back from a node that echoes frames.

import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import tls from 'node:tls';

import { Balancer, config } from './lib/balancer.mjs';
import { within } from './lib/wait.mjs';

const REQUEST =
  'GET /chat HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n' +
  'Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n';
const SIZES = [1, 125, 1024, 16_384, 40_000];
const VERSIONS = ['TLSv1.2', 'TLSv1.3'];

let folder, papers, node, secureNode, balancer;
const peers = new Set();

before(async () => {
  folder = mkdtempSync(join(tmpdir(), 'mainstay-tls-'));
  papers = { cert: join(folder, 'cert.pem'), key: join(folder, 'key.pem') };
  const request = ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  // Not an authority's: rustls takes none of those for a server.
  const names = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost'];
  names.push('-addext', 'basicConstraints=critical,CA:FALSE');
  execFileSync('openssl', [...request, ...names, '-keyout', papers.key, '-out', papers.cert], { stdio: 'ignore' });
  node = await echo(http.createServer());
  secureNode = await echo(https.createServer({ key: readFileSync(papers.key), cert: readFileSync(papers.cert) }));
  const listed = (server) => ({ listed: [{ id: 'ws1', address: `127.0.0.1:${server.address().port}` }] });
  const made = config(listed(node), { health: null });
  made.listeners[0].tls = { certificates: [papers] };
  made.pools.secure = { ...config(listed(secureNode), { health: null }).pools.chat };
  made.pools.secure.tls = { ca: papers.cert, server_name: 'localhost' };
  made.routes = [{ path: '/secure/', pool: 'secure' }, { pool: 'chat' }];
  balancer = await Balancer.start(made);
});
afterEach(() => {
  for (const end of peers) end();
  peers.clear();
});
after(async () => {
  await balancer?.stop();
  for (const server of [node, secureNode]) server?.close();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

/** A node that says yes and sends every frame back, unmasked; it ends its stream when its peer does. */
async function echo(server) {
  server.on('upgrade', (request, socket, early) => {
    const key = `${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`;
    const accept = createHash('sha1').update(key).digest('base64');
    socket.write(
      `HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
    );
    let left = early;
    const send = (bytes) => {
      left = Buffer.concat([left, bytes]);
      for (let frame; (frame = parse(left)); left = left.subarray(frame.size)) socket.write(build(frame.payload));
    };
    socket.on('data', send).on('end', () => socket.end()).on('error', () => {});
    send(Buffer.alloc(0));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  return server;
}

/** A binary frame; a client's is masked, with zeros. */
function build(payload, masked = false) {
  const bit = masked ? 0x80 : 0;
  const head = payload.length < 126 ? [0x82, bit | payload.length] : [0x82, bit | 126, payload.length >> 8, payload.length & 255];
  return Buffer.concat([Buffer.from(head), Buffer.alloc(masked ? 4 : 0), payload]);
}

/** The first frame of `bytes`, once it is whole; its mask is zeros. */
function parse(bytes) {
  if (bytes.length < 4) return null;
  const long = (bytes[1] & 0x7f) === 126;
  const length = long ? bytes.readUInt16BE(2) : bytes[1] & 0x7f;
  const start = (long ? 4 : 2) + (bytes[1] & 0x80 ? 4 : 0);
  if (bytes.length < start + length) return null;
  return { size: start + length, payload: bytes.subarray(start, start + length) };
}

/** What a stream gives, kept until somebody has read it. */
class Ear {
  constructor(stream) {
    this.bytes = Buffer.alloc(0);
    this.wake = () => {};
    stream.on('data', (bytes) => {
      this.bytes = Buffer.concat([this.bytes, bytes]);
      this.wake();
    });
  }

  /** Takes all up to and with `wanted`. */
  async hears(wanted) {
    for (let at; (at = this.bytes.indexOf(wanted)) < 0; ) {
      await within(new Promise((resolve) => (this.wake = resolve)), () => `${wanted.length} bytes, heard ${this.bytes.length}`);
    }
    this.bytes = this.bytes.subarray(this.bytes.indexOf(wanted) + wanted.length);
  }
}

function port() {
  return Number(balancer.address.split(':')[1]);
}

/** OpenSSL's client with a tunnel open. */
async function openssl(version) {
  const options = ['-connect', balancer.address, '-servername', 'localhost', '-CAfile', papers.cert, version];
  const child = spawn('openssl', ['s_client', '-verify_return_error', ...options]);
  peers.add(() => child.kill());
  const [out, err] = [new Ear(child.stdout), new Ear(child.stderr)];
  const ended = new Promise((resolve) => child.once('close', resolve));
  await out.hears('Verify return code: 0 (ok)');
  child.stdin.write(REQUEST);
  await out.hears('HTTP/1.1 101 Switching Protocols');
  return { child, out, err, ended };
}

for (const [name, letter] of [['asked for in return', 'K'], ['by one side', 'k']]) {
  test(`OpenSSL goes on after key updates ${name}`, async () => {
    const { child, out, err } = await openssl('-tls1_3');
    for (let round = 0; round < 20; round += 1) {
      child.stdin.write(`${letter}\n`);
      await err.hears('KEYUPDATE');
      const said = Buffer.from(`round ${round} ${'x'.repeat(100)}`);
      child.stdin.write(build(said, true));
      await out.hears(build(said));
    }
  });
}

test('OpenSSL is refused a renegotiation', async () => {
  const { child, err, ended } = await openssl('-tls1_2');
  child.stdin.write('R\n');
  await err.hears('no renegotiation');
  await within(ended, 'it ends');
});

for (const version of VERSIONS) {
  for (const path of ['/chat', '/secure/chat']) {
    test(`Node speaks ${version} through the tunnel of ${path} and both ends say goodbye`, async () => {
      const only = { minVersion: version, maxVersion: version };
      const socket = tls.connect({ port: port(), host: '127.0.0.1', servername: 'localhost', ca: readFileSync(papers.cert), ...only });
      peers.add(() => socket.destroy());
      const ear = new Ear(socket);
      const ended = new Promise((resolve, reject) => socket.once('end', resolve).once('error', reject));
      socket.write(REQUEST.replace('/chat', path));
      await ear.hears('\r\n\r\n');
      for (const size of [...SIZES, ...SIZES]) {
        const payload = Buffer.alloc(size, size);
        socket.write(build(payload, true));
        await ear.hears(build(payload));
      }
      socket.end();
      await within(ended, 'the end comes back');
    });
  }
}

const PYTHON = `
import socket, ssl, sys
address, authority, version, path = sys.argv[1:]
host, port = address.rsplit(':', 1)
context = ssl.create_default_context(cafile=authority)
context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version.replace('.', '_'))
with context.wrap_socket(socket.create_connection((host, int(port)), 10), server_hostname='localhost') as stream:
    stream.sendall(sys.stdin.buffer.read().replace(b'/chat', path.encode()))
    reader = stream.makefile('rb')
    while reader.readline() != b'\\r\\n':
        pass
    for size in (1, 125, 1024, 16384, 40000) * 3:
        head = bytes((size,)) if size < 126 else b'\\x7e' + size.to_bytes(2, 'big')
        stream.sendall(b'\\x82' + bytes((head[0] | 128,)) + head[1:] + bytes(4) + b'p' * size)
        assert reader.read(1 + len(head) + size) == b'\\x82' + head + b'p' * size, size
    stream.unwrap()
    print('goodbye')
`;

for (const version of VERSIONS) {
  test(`Python speaks ${version} through the tunnel and both ends say goodbye`, async () => {
    for (const path of ['/chat', '/secure/chat']) {
      const child = spawn('python3', ['-c', PYTHON, balancer.address, papers.cert, version, path]);
      peers.add(() => child.kill());
      const [out, err] = [new Ear(child.stdout), new Ear(child.stderr)];
      child.stdin.end(REQUEST);
      const code = await within(new Promise((resolve) => child.once('close', resolve)), 'Python ends');
      assert.equal(code, 0, err.bytes.toString());
      assert.equal(out.bytes.toString(), 'goodbye\n');
    }
  });
}
