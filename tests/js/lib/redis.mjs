// A real redis-server of the test's own: on a Unix socket in a temporary folder, nothing kept, no port.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { Child } from './child.mjs';

export class Redis {
  static async start() {
    const folder = await mkdtemp(join(tmpdir(), 'mainstay-redis-'));
    const path = join(folder, 'redis.sock');
    const args = ['--port', '0', '--unixsocket', path, '--save', '', '--appendonly', 'no', '--dir', folder];
    const child = new Child('redis-server', 'redis-server', args);
    await child.line(/ready to accept connections/i);
    return new Redis(folder, path, child);
  }

  constructor(folder, path, child) {
    Object.assign(this, { folder, path, child });
  }

  async stop() {
    await this.child.stop();
    await rm(this.folder, { recursive: true, force: true });
  }
}
