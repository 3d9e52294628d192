// The deploy files, as far as a machine without containers and Kubernetes can say: they are what the schemas ask for,
// they have what the fleet relies on, the binaries take the commands in them, and the same commands make a fleet that a
// client can use.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { access, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
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

test('every container keeps to the restricted Pod Security Standard and names a version', async () => {
  const version = await mainstayVersion();
  const pods = (await documents()).filter(({ spec }) => spec?.template).map(({ spec }) => spec.template.spec);
  assert.equal(pods.length, 2);
  for (const pod of pods) {
    assert.deepEqual(restrictedFaults(pod), []);
    assert.equal(pod.automountServiceAccountToken, false, 'nobody here asks the API server');
    for (const { image, securityContext } of pod.containers) {
      assert.equal(image, `mainstay:${version}`);
      assert.equal(securityContext.readOnlyRootFilesystem, true);
    }
  }
  const [pod] = pods;
  for (const [path, key] of [[['securityContext'], 'seccompProfile'], [['securityContext'], 'runAsNonRoot'], [['containers', 0, 'securityContext'], 'capabilities']]) {
    const wrong = structuredClone(pod);
    delete path.reduce((inner, step) => inner[step], wrong)[key];
    assert.equal(restrictedFaults(wrong).length, 1, key);
  }
});

test('clients keep their address, of both families, and the balancers stand apart', async () => {
  const all = await documents();
  const services = all.filter(({ kind }) => kind === 'Service');
  for (const { metadata, spec } of services) assert.equal(spec.ipFamilyPolicy, 'PreferDualStack', metadata.name);
  const open = services.filter(({ spec }) => spec.type === 'LoadBalancer');
  assert.equal(open.length, 1);
  assert.equal(open[0].spec.externalTrafficPolicy, 'Local');
  assert.deepEqual(open[0].spec.ports.map(({ targetPort }) => targetPort), ['http'], 'the admin API is not open to the world');
  const config = parse(all.find(({ kind }) => kind === 'ConfigMap').data['balancer.yaml']);
  const port = open[0].spec.ports[0].targetPort;
  const balancer = all.find(({ kind }) => kind === 'Deployment').spec;
  const { containerPort } = balancer.template.spec.containers[0].ports.find(({ name }) => name === port);
  assert.deepEqual(config.listeners.map(({ address }) => address), [`0.0.0.0:${containerPort}`, `[::]:${containerPort}`]);
  for (const { spec } of all.filter(({ spec }) => spec?.template)) {
    const { labels } = spec.template.metadata;
    const spread = spec.template.spec.topologySpreadConstraints;
    assert.ok(spread.some(({ topologyKey }) => topologyKey === 'kubernetes.io/hostname'));
    for (const { labelSelector } of spread) assert.deepEqual(labelSelector.matchLabels, labels);
    const budgets = all.filter(({ kind, spec: budget }) => kind === 'PodDisruptionBudget' && budget.selector.matchLabels.app === labels.app);
    assert.deepEqual(budgets.map(({ spec: budget }) => budget.maxUnavailable), [1], labels.app);
  }
});

test('the monitors find the ports of the services, and no kustomization needs the operator', async () => {
  const { resources } = parse(await text('kubernetes', 'kustomization.yaml'));
  assert.ok(!resources.includes('servicemonitor.yaml'));
  const monitors = parseAllDocuments(await text('kubernetes', 'servicemonitor.yaml')).map((document) => document.toJS());
  const services = (await documents()).filter(({ kind }) => kind === 'Service');
  assert.deepEqual(monitors.map(({ metadata }) => metadata.name), ['mainstay-node', 'mainstay-balancer']);
  for (const { apiVersion, kind, spec, ...more } of monitors) {
    assert.deepEqual([apiVersion, kind, Object.keys(more)], ['monitoring.coreos.com/v1', 'ServiceMonitor', ['metadata']]);
    assert.deepEqual(Object.keys(spec), ['selector', 'endpoints']);
    for (const { port, path, interval, authorization, ...rest } of spec.endpoints) {
      assert.deepEqual([path, interval, rest], ['/metrics', '15s', {}]);
      const { app } = spec.selector.matchLabels;
      const found = services.filter(({ metadata, spec: service }) => {
        return metadata.labels?.app === app && service.ports.some(({ name }) => name === port);
      });
      assert.equal(found.length, 1, `one service of ${app} has the port ${port}`);
      const secret = port === 'admin' ? { type: 'Bearer', credentials: { name: 'mainstay-admin', key: 'token' } } : undefined;
      assert.deepEqual(authorization, secret);
    }
  }
});

test('the image has what it runs, and its context nothing else', async () => {
  const file = await text('Dockerfile');
  const lines = file.split('\n').filter((line) => line && !line.startsWith('#'));
  const ignored = (await readFile(join(ROOT, '.dockerignore'), 'utf8')).split('\n').filter((line) => line && !line.startsWith('#'));
  assert.equal(ignored[0], '*', 'nothing but what is named');
  const taken = ignored.filter((line) => line.startsWith('!')).map((line) => line.slice(1));
  const copied = lines.filter((line) => /^COPY (?!--from)/.test(line)).flatMap((line) => line.split(' ').slice(1, -1));
  assert.deepEqual([...copied].sort(), [...taken].sort());
  for (const name of copied) await access(join(ROOT, name));
  for (const name of ['tests/js/node_modules', '**/target', '**/.git']) assert.ok(ignored.includes(name), name);
  assert.ok(lines.some((line) => /^RUN strip .*mainstay .*mainstay-node$/.test(line)), 'both are stripped');
  assert.ok(!lines.some((line) => /^FROM .*(:latest|^[^:]*)$/.test(line)), 'each image has a version');
  assert.match(file, /\nHEALTHCHECK .*CMD \["\/usr\/local\/bin\/mainstay", "health"\]\n/);
  const number = lines.find((line) => line.startsWith('USER ')).slice(5);
  assert.match(number, /^[1-9]\d*:[1-9]\d*$/, 'a number, which runAsNonRoot can check');
});

test('the health checks of the image and of compose tell a good process from none', async (t) => {
  const { services } = parse(await text('compose.yaml'), { merge: true });
  for (const name of ['balancer', 'ws1', 'ws2', 'ws3']) {
    const { image, read_only, cap_drop } = services[name];
    assert.deepEqual([image, read_only, cap_drop], [`mainstay:${await mainstayVersion()}`, true, ['ALL']]);
  }
  assert.match(services.redis.image, /^redis:\d/);
  const node = await Node.start('ws1', ['--drain', '0s']);
  t.after(() => node.stop());
  const folder = await mkdtemp(join(tmpdir(), 'mainstay-health-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const file = join(folder, 'balancer.yaml');
  await writeFile(file, `listeners: [{ address: "127.0.0.1:0" }]\nadmin: { address: "unix:${join(folder, 'admin.sock')}" }
pools: { chat: { nodes: [{ id: ws1, address: "${node.address}" }] } }\n`);
  const balancer = await Balancer.run(['run', '-c', file], {});
  t.after(() => balancer.stop());
  const ended = async (program, words, variables) => {
    const child = new Child('health', program, words, { env: { ...process.env, ...variables } });
    return (await within(child.ended, 'the check')).code;
  };
  const [, program, ...words] = services.balancer.healthcheck.test;
  assert.equal(program, '/usr/local/bin/mainstay');
  const mainstay = await balancerBinary();
  assert.equal(await ended(mainstay, words, { MAINSTAY_CONFIG: file }), 0);
  assert.equal(await ended(mainstay, ['health'], { MAINSTAY_CONFIG: file }), 0);
  const [, nodeProgram, verb, address] = services.ws1.healthcheck.test;
  assert.deepEqual([nodeProgram, verb], ['/usr/local/bin/mainstay-node', 'health']);
  assert.equal(address.split(':')[1], flag(services.ws1.command, '--listen').split(':')[1]);
  const mainstayNode = join(dirname(mainstay), 'mainstay-node');
  assert.equal(await ended(mainstayNode, [verb, node.address]), 0);
  await node.stop();
  assert.equal(await ended(mainstayNode, [verb, node.address]), 1);
  await balancer.stop();
  assert.equal(await ended(mainstay, ['health'], { MAINSTAY_CONFIG: file }), 1);
});

test('the Kubernetes files have what the fleet relies on', async () => {
  const { resources } = parse(await text('kubernetes', 'kustomization.yaml'));
  const aside = ['kustomization.yaml', 'servicemonitor.yaml'];
  const files = (await readdir(join(DEPLOY, 'kubernetes'))).filter((name) => !aside.includes(name));
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

/** What a pod has that the restricted Pod Security Standard does not allow, or lacks. */
function restrictedFaults({ securityContext, containers, hostNetwork, hostPID, volumes = [] }) {
  const faults = [];
  const expect = (holds, what) => holds || faults.push(what);
  expect(securityContext?.runAsNonRoot === true && securityContext.runAsUser > 0, 'runAsNonRoot');
  expect(['RuntimeDefault', 'Localhost'].includes(securityContext?.seccompProfile?.type), 'seccompProfile');
  expect(!hostNetwork && !hostPID && volumes.every(({ hostPath }) => !hostPath), 'the host');
  for (const { name, securityContext: own, ports } of containers) {
    expect(own?.allowPrivilegeEscalation === false && !own.privileged, `${name}: privileges`);
    expect(own?.capabilities?.drop?.includes('ALL') && !own.capabilities.add, `${name}: capabilities`);
    expect(ports.every(({ hostPort }) => !hostPort), `${name}: ports of the host`);
  }
  return faults;
}

async function mainstayVersion() {
  return (await readFile(join(ROOT, 'Cargo.toml'), 'utf8')).match(/^version = "(.*)"$/m)[1];
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
