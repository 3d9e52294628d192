// A person's view: Chromium opens the chat page of `mainstay demo`, whose three nodes stand behind the balancer.
//
// Screenshots are left in a folder whose name the test prints (SCREENSHOTS names another).

import assert from 'node:assert/strict';
import { mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { chromium } from 'playwright-core';

import { Balancer } from './lib/balancer.mjs';

const CHROMIUM = process.env.CHROMIUM_BIN ?? '/usr/bin/chromium';
// Started by root in CI, hence no sandbox; the rest keeps it from looking for hosts that no test needs.
const FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync'];
const PATIENCE = { timeout: 20_000 };

let demo;
let browser;
let shots;
before(async () => {
  demo = await Balancer.demo(3);
  browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
  shots = process.env.SCREENSHOTS ?? await mkdtemp(join(tmpdir(), 'mainstay-shots-'));
});
after(async () => {
  await browser?.close();
  await demo?.stop();
});

test('two people on different nodes talk in a room and see each other', async (t) => {
  const [ann, bob] = await apart(t);
  await said(ann, 'hello, <b>bob</b>');
  const item = bob.page.locator(`#log li[data-from="${ann.name}"]`).last();
  await item.waitFor(PATIENCE);
  const text = await item.innerText();
  assert.ok(text.includes('hello, <b>bob</b>') && text.includes(ann.node), text);
  // One's own message is there once.
  assert.equal(await ann.page.locator(`#log li[data-from="${ann.name}"]`).count(), 1);
  for (const [one, other] of [[ann, bob], [bob, ann]]) {
    await one.page.waitForSelector(`[data-group="${other.node}"] [data-member="${other.name}"]`, PATIENCE);
    await one.page.waitForSelector(`[data-group="${one.node}"] [data-member="${one.name}"]`, PATIENCE);
  }
  await ann.page.screenshot({ path: join(shots, 'chat.png'), fullPage: true });
});

test('what is said in one room is not heard in another', async (t) => {
  const [ann, bob] = await apart(t);
  await enter(ann, 'quay');
  await enter(bob, 'quay');
  await bob.page.click('[data-room=lobby]');
  await said(ann, 'only on the quay');
  await bob.page.click('[data-room=quay]');
  await bob.page.locator('#log li', { hasText: 'only on the quay' }).waitFor(PATIENCE);
  await bob.page.click('[data-room=lobby]');
  assert.equal(await bob.page.locator('#log li', { hasText: 'only on the quay' }).count(), 0);
  await ann.page.click('#leave');
  await bob.page.click('[data-room=quay]');
  await bob.page.waitForSelector('body[data-members="1"]', PATIENCE);
});

test('a direct message reaches a person on another node, and says how many connections', async (t) => {
  const [ann, bob] = await apart(t);
  await ann.page.fill('#text', 'psst');
  await ann.page.click(`[data-member="${bob.name}"] button`, PATIENCE);
  await bob.page.locator('#log li', { hasText: 'psst' }).waitFor(PATIENCE);
  await ann.page.locator('#log .note', { hasText: `reached ${bob.name} on 1 connection.` }).waitFor(PATIENCE);
});

test('a killed connection comes back to its node and is in its rooms again', async (t) => {
  const [ann, bob] = await apart(t);
  await ann.page.click('#kill');
  await ann.page.waitForSelector('body[data-state=lost]', PATIENCE);
  await ann.page.waitForSelector('body[data-state=open]', PATIENCE);
  assert.equal(await ann.page.locator('#where').innerText(), ann.node);
  await said(bob, 'are you back?');
  await ann.page.locator('#log li', { hasText: 'are you back?' }).waitFor(PATIENCE);
});

test('guests with names of their own spread over the three nodes and all hear the room', async (t) => {
  const { page } = await opened(t);
  // Ten random names may by chance leave a node out; forty-one hardly can (3 × (2/3)^41).
  for (let count = 11; count <= 41; count += 10) {
    await page.click('#guests');
    await page.waitForSelector(`body[data-members="${count}"]`, PATIENCE);
  }
  const groups = await page.locator('[data-group]').evaluateAll((all) => all.map((group) => group.dataset.group));
  assert.deepEqual(groups, ['ws1', 'ws2', 'ws3']);
  await page.screenshot({ path: join(shots, 'guests.png'), fullPage: true });
});

test('the page fits a phone and a dark room', async (t) => {
  const { page } = await opened(t, { viewport: { width: 360, height: 740 }, colorScheme: 'dark' });
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(overflow <= 0, `${overflow} pixels wider than the screen`);
  await page.screenshot({ path: join(shots, 'phone-dark.png'), fullPage: true });
});

/** The chat page in a browser context (and so a person) of its own; its console must stay silent. */
async function opened(t, options = {}) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const noise = [];
  page.on('console', (message) => ['error', 'warning'].includes(message.type()) && noise.push(message.text()));
  page.on('pageerror', (error) => noise.push(String(error)));
  t.after(async () => {
    await context.close();
    assert.deepEqual(noise, [], 'the console');
  });
  const answer = await page.goto(demo.url);
  assert.equal(answer.status(), 200);
  assert.ok(answer.headers()['content-security-policy'].startsWith("default-src 'none'"));
  await page.waitForSelector('body[data-state=open]', PATIENCE);
  return { page, name: await page.locator('#me').innerText(), node: await page.locator('#where').innerText() };
}

/** Two people whose names put them on different nodes. */
async function apart(t) {
  const one = await opened(t);
  for (let tries = 0; tries < 30; tries += 1) {
    const other = await opened(t);
    if (other.node !== one.node) return [one, other];
  }
  throw new Error('thirty random names on one node');
}

async function said({ page }, text) {
  await page.fill('#text', text);
  await page.click('#send');
  await page.locator('#log li', { hasText: text }).waitFor(PATIENCE);
}

async function enter({ page }, room) {
  await page.fill('#new-room', room);
  await page.click('#enter button[type=submit]');
  await page.waitForSelector(`body[data-room=${room}]`, PATIENCE);
}
