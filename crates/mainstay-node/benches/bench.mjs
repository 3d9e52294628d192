// The node beside a Node.js socket.io server, one core each, WebSocket only: memory per idle connection, CPU time per
// echoed message, CPU time per delivery in a room of 100.
//
//   cargo build --release --workspace && node crates/mainstay-node/benches/bench.mjs
//
// The server has core 0, this driver another. An echo is a request of the bundled application whose acknowledgement has
// the 128 bytes that were sent. CPU time is the server's, from /proc: as a whole, and without what the kernel took for
// its sockets, which is the same for both and more than half of ours. Rounds alternate between the two, and each figure
// is the median of the rounds. Memory is the slope between two numbers of connections.

import { Client, cpu, crowd, end, memory, nodejs, rust } from './client.mjs';

const ROUNDS = 5;
const IDLE = [500, 3000];
const PAYLOAD = 'x'.repeat(128);
const ECHOES = { clients: 16, each: 3000 };
const ROOM = { members: 100, messages: 800 };

const servers = [await rust('rust', ['--recovery', '0s'], 0), await nodejs('node.js', {}, 0)];
try {
  const figures = { 'idle connection, KiB': [] };
  for (const server of servers) figures['idle connection, KiB'].push((await idle(server)) / 1024);
  for (const [what, measure] of [['echo of 128 bytes', echo], ['delivery in a room of 100', deliver]]) {
    const taken = await rounds(measure);
    figures[`${what}, µs`] = taken.map((list) => median(list.map(({ own, kernel }) => own + kernel)));
    figures[`${what}, µs outside the kernel`] = taken.map((list) => median(list.map(({ own }) => own)));
    figures[`${what}, µs in the kernel`] = taken.map((list) => median(list.map(({ kernel }) => kernel)));
  }
  console.log('| | Rust | Node.js | ratio |\n|---|---|---|---|');
  for (const [what, [ours, theirs]] of Object.entries(figures)) {
    console.log(`| ${what} | ${ours.toFixed(2)} | ${theirs.toFixed(2)} | ${(theirs / ours).toFixed(1)} |`);
  }
} finally {
  servers.forEach(end);
}
process.exit(0);

async function idle(server) {
  const first = await crowd(IDLE[0], () => Client.open(server.url));
  await settle();
  const before = memory(server);
  const more = await crowd(IDLE[1] - IDLE[0], () => Client.open(server.url));
  await settle();
  const slope = (memory(server) - before) / (IDLE[1] - IDLE[0]);
  for (const client of [...first, ...more]) client.ws.terminate();
  await settle();
  return slope;
}

async function rounds(measure) {
  const taken = servers.map(() => []);
  for (let round = 0; round < ROUNDS; round += 1) {
    for (const [i, server] of servers.entries()) taken[i].push(await measure(server));
  }
  return taken;
}

function median(list) {
  return list.sort((a, b) => a - b)[Math.floor(list.length / 2)];
}

/** Microseconds for each of `count`, since `before`. */
function each(count, server, before) {
  const now = cpu(server);
  return { own: (now.own - before.own) / count / 1000, kernel: (now.kernel - before.kernel) / count / 1000 };
}

/** Microseconds per echo. */
async function echo(server) {
  const clients = await crowd(ECHOES.clients, () => Client.open(server.url));
  const before = cpu(server);
  await Promise.all(clients.map(async (client) => {
    for (let n = 0; n < ECHOES.each; n += 1) await client.ask('leave', { room: PAYLOAD });
  }));
  const taken = each(ECHOES.clients * ECHOES.each, server, before);
  for (const client of clients) client.ws.terminate();
  return taken;
}

/** Microseconds per delivery. */
async function deliver(server) {
  let heard = 0;
  let all;
  const wanted = ROOM.messages * (ROOM.members - 1);
  const done = new Promise((resolve) => { all = resolve; });
  const members = await crowd(ROOM.members, () => Client.open(server.url, () => { if ((heard += 1) === wanted) all(); }));
  await Promise.all(members.map((member) => member.ask('join', { room: 'r' })));
  const before = cpu(server);
  for (let n = 0; n < ROOM.messages; n += 1) await members[n % ROOM.members].ask('publish', { room: 'r', data: PAYLOAD });
  await done;
  const taken = each(wanted, server, before);
  for (const member of members) member.ws.terminate();
  return taken;
}

/** What a server does right after a change is no part of a figure. */
function settle() {
  return new Promise((resolve) => setTimeout(resolve, 1000));
}
