/** An error that nothing caught ends the process, and says what it is without the row that a driver put into it. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, expect, it, vi } from 'vitest';
import { folder, remove, startService } from '../stage.ts';

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
