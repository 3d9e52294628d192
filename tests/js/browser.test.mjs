// A person's view: Chromium opens the page of `mainstay demo` and sees where its sockets land.
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

test('the sockets of one browser land on one node, also when it opens more', async (t) => {
  const page = await opened(t);
  await allOpen(page, 12);
  assert.equal((await nodes(page)).size, 1);
  await page.click('#more');
  await allOpen(page, 22);
  assert.equal((await nodes(page)).size, 1);
  await page.screenshot({ path: join(shots, 'this-browser.png'), fullPage: true });
});

test('the browser is still on its node after a reload, and another browser has a node of its own', async (t) => {
  const page = await opened(t);
  await allOpen(page, 12);
  const [home] = (await nodes(page)).keys();
  await page.reload();
  await allOpen(page, 12);
  assert.deepEqual([...(await nodes(page)).keys()], [home]);
  const stranger = await opened(t);
  await allOpen(stranger, 12);
  assert.equal((await nodes(stranger)).size, 1);
});

test('the sockets of many users land on three nodes', async (t) => {
  const page = await opened(t);
  await allOpen(page, 12);
  await page.click('#mode-users');
  await page.waitForSelector('body[data-mode=users][data-state=open][data-open="12"]', PATIENCE);
  // Twelve random names may by chance leave a node out; fifty-two hardly can (3 × (2/3)^52).
  for (let count = 22; count <= 52; count += 10) {
    await page.click('#more');
    await allOpen(page, count);
  }
  assert.equal((await nodes(page)).size, 3);
  await page.screenshot({ path: join(shots, 'many-users.png'), fullPage: true });
});

test('a message to all sockets is echoed by each, and close all closes all', async (t) => {
  const page = await opened(t);
  await allOpen(page, 12);
  await page.fill('#text', 'hello, <b>node</b>');
  await page.click('#send');
  const item = page.locator('#echoes li').first();
  await page.waitForSelector('#echoes li[data-heard="12"][data-expected="12"]', PATIENCE);
  const [home] = (await nodes(page)).keys();
  const text = await item.innerText();
  assert.ok(text.includes('hello, <b>node</b>') && text.includes(`${home} × 12`), text);
  await page.click('#close');
  await page.waitForSelector('body[data-state=closed]', PATIENCE);
  assert.equal(await page.locator('[data-node]').count(), 0);
});

test('the page fits a phone and a dark room', async (t) => {
  const page = await opened(t, { viewport: { width: 360, height: 740 }, colorScheme: 'dark' });
  await allOpen(page, 12);
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  assert.ok(overflow <= 0, `${overflow} pixels wider than the screen`);
  await page.screenshot({ path: join(shots, 'phone-dark.png'), fullPage: true });
});

/** The demo page in a browser context (and so a cookie jar) of its own; its console must stay silent. */
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
  return page;
}

async function allOpen(page, count) {
  await page.waitForSelector(`body[data-state=open][data-open="${count}"]`, PATIENCE);
  assert.equal(await page.locator('.socket[data-node]').count(), count);
}

/** Node to number of sockets, as the page shows them. */
async function nodes(page) {
  const names = await page.locator('.socket[data-node]').evaluateAll((all) => all.map((socket) => socket.dataset.node));
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) ?? 0) + 1);
  return counts;
}
