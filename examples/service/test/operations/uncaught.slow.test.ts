/** An error that nothing caught ends the process, and says what it is without the row that a driver put into it. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, expect, it, vi } from 'vitest';
import { folder, remove, runMain, startService } from '../stage.ts';

vi.setConfig({ testTimeout: 120_000 });

const directory = await folder();
afterAll(() => remove(directory));

it('ends the process without a word of what it quotes', async () => {
  const canary = 'canary-of-a-row-0d71';
  const error = `Object.assign(new Error('quotes ${canary}'), { code: '23505', detail: 'Failing row contains (${canary}).' })`;
  // In a file of its own: the place in the code is told, and must not be what quotes it.
  const broken = join(directory, 'broken.mjs');
  await writeFile(broken, `process.on('SIGUSR2', () => { Promise.reject(${error}); });`);
  const service = await startService(directory, { NODE_OPTIONS: `--import=${pathToFileURL(broken).href}` });
  service.child.kill('SIGUSR2');
  expect(await service.exit).toBe(1);
  expect(service.output()).not.toContain(canary);
  expect(service.output()).toContain('an error that nothing caught');
  expect(service.output()).toContain('23505');
});

it('does not start, without a word of what the error of it quotes', async () => {
  const password = 'a canary of a password 4c1e';
  const broken = join(directory, 'no-listener.mjs');
  await writeFile(broken, `import { Server } from 'node:net';
    Server.prototype.listen = () => { throw new TypeError('could not use ' + process.env.KEYGUARD_ADMIN_PASSWORD + ' at postgres://a:sesame-0d71@db'); };`);
  const started = runMain(directory, { NODE_OPTIONS: `--import=${pathToFileURL(broken).href}`, KEYGUARD_ADMIN_EMAIL: 'admin@example.com', KEYGUARD_ADMIN_PASSWORD: password });
  expect(await started.exit).toBe(1);
  expect(started.output()).toContain('TypeError: could not use [redacted] at postgres://[redacted]@db');
  expect(started.output()).not.toMatch(/canary|sesame/);
});
