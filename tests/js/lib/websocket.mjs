// Bare WebSockets, where socket.io-client would do more than is asked.

import WebSocket from 'ws';

import { within } from './wait.mjs';

/** A WebSocket at `url` that has opened, or the failure to; `options` are those of ws. */
export async function opened(url, options = {}) {
  const socket = new WebSocket(url, options);
  await within(new Promise((resolve, reject) => {
    socket.once('open', resolve);
    socket.once('error', reject);
  }), `a WebSocket at ${url}`);
  return socket;
}

/** Opens one, sees `text` come back, and closes it. */
export async function echoes(url, text) {
  const socket = await opened(url);
  try {
    const came = new Promise((resolve) => socket.once('message', (data) => resolve(String(data))));
    socket.send(text);
    const heard = await within(came, `an echo from ${url}`);
    if (heard !== text) throw new Error(`${heard} came back for ${text}`);
  } finally {
    socket.terminate();
  }
}

/** Asks for a WebSocket there: 101, the status of a refusal, or the error. */
export async function asks(url, options = {}) {
  const socket = new WebSocket(url, options);
  const answer = new Promise((resolve) => {
    socket.once('open', () => resolve(101));
    socket.once('unexpected-response', (_, response) => resolve(response.statusCode));
    socket.once('error', (error) => resolve(error.message));
  });
  try {
    return await within(answer, `an answer to an upgrade at ${url}`);
  } finally {
    socket.on('error', () => {});
    socket.terminate();
  }
}
