// The deploy files, as far as a machine without containers and Kubernetes can say: they are what the schemas ask for,
// they have what the fleet relies on, the binaries take the commands in them, and the same commands make a fleet that a
// client can use.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import WebSocket from 'ws';
import { parse, parseAllDocuments } from 'yaml';

import { Balancer, ROOT, binary as balancerBinary } from './lib/balancer.mjs';
import { Child } from './lib/child.mjs';
import { Node } from './lib/node.mjs';
import { Redis } from './lib/redis.mjs';
import { composeFaults, kubernetesFaults } from './lib/schemas.mjs';
import { until, within } from './lib/wait.mjs';

const DEPLOY = join(ROOT, 'deploy');
const text = (...path) => readFile(join(DEPLOY, ...path), 'utf8');

test('compose is what the Compose Specification asks for, and a misspelt field is not', async () => {
  const file = async () => parse(await text('compose.yaml'), { merge: true });
  assert.deepEqual(composeFaults(await file()), []);
  const wrong = await file();
  wrong.services.ws1.stop_grace_perod = '45s';
  wrong.services.redis.healthcheck.interval = '2 seconds';
  const faults = composeFaults(wrong);
  assert.equal(faults.length, 2, faults.join('\n'));
  assert.ok(faults.some((fault) => /^\/services\/ws1 .*stop_grace_perod/.test(fault)));
  assert.ok(faults.some((fault) => /^\/services\/redis\/healthcheck\/interval .*duration/.test(fault)));
});

test('the Kubernetes files are what its schemas ask for, and a misspelt field is not', async () => {
  for (const object of await documents()) assert.deepEqual(kubernetesFaults(object), [], `${object.kind}`);
  const { apiVersion, kind, resources, ...more } = parse(await text('kubernetes', 'kustomization.yaml'));
  assert.deepEqual([apiVersion, kind, more], ['kustomize.config.k8s.io/v1beta1', 'Kustomization', {}]);
  assert.ok(resources.every((name) => typeof name === 'string'));

  const named = await changed('StatefulSet', ({ template }) => (template.spec.containers[0].readinesProbe = {}));
  assert.match(named, /^\/spec\/template\/spec\/containers\/0 .*readinesProbe/);
  const typed = await changed('Deployment', ({ template }) => (template.spec.containers[0].ports[0].containerPort = 'x'));
  assert.match(typed, /^\/spec\/template\/spec\/containers\/0\/ports\/0\/containerPort must be integer/);
  const missing = await changed('StatefulSet', (spec) => delete spec.selector);
  assert.match(missing, /^\/spec must have required property 'selector'/);
  assert.match(await changed('HorizontalPodAutoscaler', (spec) => (spec.maxReplica = 1)), /maxReplica"/);
});

test('compose has a balancer, three nodes and Redis, and time for a drain', async () => {
  const { services } = parse(await text('compose.yaml'), { merge: true });
  assert.deepEqual(Object.keys(services).sort(), ['balancer', 'redis', 'ws1', 'ws2', 'ws3']);
  for (const name of ['ws1', 'ws2', 'ws3']) {
    assert.deepEqual(services[name].entrypoint, ['/usr/local/bin/mainstay-node']);
    assert.equal(flag(services[name].command, '--id'), name);
    assert.ok(seconds(services[name].stop_grace_period) > 30, 'more than --drain');
  }
  const [, file] = services.balancer.volumes[0].match(/^\.\/(.*):\/etc\/mainstay\/balancer\.yaml:ro$/);
  assert.deepEqual(parse(await text(file)).pools.chat.nodes.map((node) => node.id), ['ws1', 'ws2', 'ws3']);
});

test('the commands of compose make a fleet, without containers', async (t) => {
  const { services } = parse(await text('compose.yaml'), { merge: true });
  const redis = await Redis.start();
  t.after(() => redis.stop());
  const nodes = [];
  for (const name of ['ws1', 'ws2', 'ws3']) {
    // Only where it listens and where Redis is differ from the container.
    const flags = services[name].command.map((word) => (word.startsWith('redis://') ? `redis+unix://${redis.path}` : word));
    const node = await Node.start(name, [...without(flags, '--id', '--listen'), '--drain', '0s']);
    t.after(() => node.stop());
    nodes.push(node);
  }
  const places = Object.fromEntries(nodes.map((node) => [node.id.toUpperCase(), node.address]));
  const [, file] = services.balancer.volumes[0].match(/^\.\/(.*?):/);
  const balancer = await Balancer.run(['run', '-c', join(DEPLOY, file)], { ...places, LISTEN: '127.0.0.1:0', ADMIN: '127.0.0.1:0' });
  t.after(() => balancer.stop());
  const seen = new Set();
  const hears = [];
  await until(() => `clients on two nodes, there are ${[...seen]}`, async () => {
    const socket = new WebSocket(`ws://${balancer.address}/ws?user=user-${hears.length}`);
    t.after(() => socket.terminate());
    const [welcome] = await within(once(socket, 'message'), 'a welcome');
    seen.add(JSON.parse(welcome).node);
    socket.send(JSON.stringify({ type: 'join', room: 'lobby' }));
    assert.equal(JSON.parse((await within(once(socket, 'message'), 'an answer'))[0]).type, 'ok');
    hears.push(socket);
    return seen.size > 1;
  });
  const all = hears.slice(1).map((socket) => within(once(socket, 'message'), 'everybody hears it'));
  hears[0].send(JSON.stringify({ type: 'publish', room: 'lobby', data: 'hello' }));
  for (const [message] of await Promise.all(all)) assert.equal(JSON.parse(message).data, 'hello');
});

test('the Kubernetes files have what the fleet relies on', async () => {
  const { resources } = parse(await text('kubernetes', 'kustomization.yaml'));
  const files = (await readdir(join(DEPLOY, 'kubernetes'))).filter((name) => name !== 'kustomization.yaml');
  assert.deepEqual([...resources].sort(), files.sort(), 'each file is a resource');
  const all = await documents();
  for (const object of all) {
    assert.ok(object.apiVersion && object.kind && object.metadata.name, JSON.stringify(object));
  }
  const find = (kind, name) => all.find((object) => object.kind === kind && object.metadata.name === name);
  const scaler = find('HorizontalPodAutoscaler', 'mainstay-node').spec;
  const node = find('StatefulSet', scaler.scaleTargetRef.name).spec;
  assert.deepEqual([scaler.minReplicas, scaler.maxReplicas], [3, 20]);
  const [clients, cpu] = scaler.metrics;
  assert.equal(clients.pods.metric.name, 'websocket_connections');
  assert.deepEqual(clients.pods.target, { type: 'AverageValue', averageValue: '40000' });
  assert.equal(cpu.resource.target.averageUtilization, 70);
  assert.ok(scaler.behavior.scaleDown.stabilizationWindowSeconds >= 300);
  const pod = node.template.spec;
  const [container] = pod.containers;
  const pause = Number(container.lifecycle.preStop.exec.command[1]);
  assert.ok(pod.terminationGracePeriodSeconds > pause + seconds(flag(container.args, '--drain')) + 10);
  assert.equal(container.readinessProbe.httpGet.path, '/health');
  assert.ok(!container.livenessProbe.httpGet, 'a node that drains is not killed');
  const budget = find('PodDisruptionBudget', 'mainstay-node').spec;
  assert.deepEqual(budget.selector.matchLabels, node.template.metadata.labels);
  assert.deepEqual(find('Service', node.serviceName).spec.selector, node.template.metadata.labels);
  const secrets = container.env.filter((env) => env.valueFrom.secretKeyRef).map((env) => env.name);
  assert.deepEqual(secrets, ['MAINSTAY_REDIS_URL']);
});

test('the binaries take the commands of the Kubernetes files', async (t) => {
  const all = await documents();
  const node = all.find((object) => object.kind === 'StatefulSet').spec.template.spec.containers[0];
  const flags = without(node.args.map((word) => word.replace('$(POD_NAME)', 'mainstay-node-0')), '--listen', '--id');
  const started = await Node.start('mainstay-node-0', flags);
  assert.equal((await started.health()).body.max, 50_000);
  assert.equal((await started.stop()).code, 0);
  const folder = await mkdtemp(join(tmpdir(), 'mainstay-deploy-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const config = all.find((object) => object.kind === 'ConfigMap').data['balancer.yaml'];
  await writeFile(join(folder, 'token'), 'an-admin-token-0123456789');
  await writeFile(join(folder, 'balancer.yaml'), config.replace('/etc/mainstay/admin/token', join(folder, 'token')));
  const child = new Child('mainstay', await balancerBinary(), ['check', '-c', join(folder, 'balancer.yaml')]);
  assert.equal((await within(child.ended, 'the check')).code, 0, child.tail());
  const most = all.find((object) => object.kind === 'HorizontalPodAutoscaler').spec.maxReplicas;
  assert.equal(parse(config).pools.chat.nodes.length, most, 'the balancer knows as many nodes as there may be');
});

test('the schema of /ws takes what a node and a client say to each other', async (t) => {
  const require = createRequire(import.meta.url);
  const Ajv = require('ajv/dist/2020.js').default;
  const node = await Node.start('ws1', ['--drain', '0s']);
  t.after(() => node.stop());
  const schema = await (await fetch(`${node.url}/ws/schema.json`)).json();
  const check = new Ajv({ strict: false }).compile(schema);
  const socket = new WebSocket(`ws://${node.address}/ws?user=ann`);
  t.after(() => socket.terminate());
  const said = [];
  socket.on('message', (message) => said.push(JSON.parse(message)));
  await within(once(socket, 'message'), 'a welcome');
  for (const request of schema.examples) socket.send(JSON.stringify(request));
  socket.send('nonsense');
  await until('every request is answered', () => said.filter(({ type }) => ['ok', 'error'].includes(type)).length === schema.examples.length + 1);
  for (const message of [...schema.examples, ...said]) {
    assert.ok(check(message), `${JSON.stringify(message)}: ${JSON.stringify(check.errors)}`);
  }
});

async function documents() {
  const { resources } = parse(await text('kubernetes', 'kustomization.yaml'));
  const all = [];
  for (const name of resources) {
    for (const document of parseAllDocuments(await text('kubernetes', name))) {
      assert.deepEqual(document.errors, []);
      all.push(document.toJS());
    }
  }
  return all;
}

/** The fault of the first object of a kind after a change of its spec. */
async function changed(kind, change) {
  const object = (await documents()).find((one) => one.kind === kind);
  change(object.spec);
  const faults = kubernetesFaults(object);
  assert.equal(faults.length, 1, faults.join('\n'));
  return faults[0];
}

function flag(words, name) {
  return words[words.indexOf(name) + 1];
}

/** The words without these flags and their values. */
function without(words, ...names) {
  return words.filter((word, i) => !names.includes(word) && !names.includes(words[i - 1]));
}

function seconds(time) {
  const [, number] = time.match(/^(\d+)s$/);
  return Number(number);
}
