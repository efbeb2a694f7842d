/** The suites find what they are there to find: each sabotaged implementation fails in the property that it was robbed of. */
import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import type { Property } from '../src/cases.ts';
import { readMarkdown } from '../src/table.ts';

const CONFIG = fileURLToPath(new URL('./sabotage/vitest.config.ts', import.meta.url));

const FOUND: Readonly<Record<string, readonly Property[]>> = {
  'replay: sound': [],
  'replay: looks, then writes': ['races'],
  'replay: lets pass when it fails': ['failing'],
  'replay: makes room when it is full': ['full'],
  'replay: forgets early': ['expiry'],
  'replay: has no floor': ['expiry'],
  'replay: asks again until it is told': ['failing'],
  'limiter: sound': [],
  'limiter: looks, then writes': ['races'],
  'limiter: lets through when it fails': ['failing'],
  'limiter: ends windows early': ['expiry'],
  'provider: sound': [],
  'provider: binds no context': ['contract'],
  'provider: tells outages as refusals': ['failing'],
  'devices: sound': [],
  'devices: takes an outage for an unknown device': ['failing'],
  'devices: gives a use back when it fails': ['failing'],
  'devices: rotates again, and says so, when it fails': ['failing'],
  'keys: sound': [],
  'keys: makes another key when it fails': ['failing'],
  'keys: takes a failure for no key': ['failing'],
  'keys: promotes what it was told before': ['failing'],
};

/** A run of its own, which fails: what it prints. */
function printed(): Promise<string> {
  const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^VITEST|^NODE_OPTIONS$/.test(name)));
  return new Promise((resolve) => {
    execFile('pnpm', ['exec', 'vitest', 'run', '--config', CONFIG], { env: environment, maxBuffer: 2 ** 26 }, (_error, stdout, stderr) => resolve(stdout + stderr));
  });
}

test('every flaw is found, and in nothing sound is one', { timeout: 120_000 }, async () => {
  const rows = readMarkdown(await printed());
  expect(rows.map(({ implementation }) => implementation).toSorted()).toEqual(Object.keys(FOUND).toSorted());
  for (const { implementation, cells } of rows) {
    const failed = Object.entries(cells).flatMap(([property, cell]) => (cell === 'failed' ? [property] : []));
    if (FOUND[implementation]!.length === 0) expect(failed, implementation).toEqual([]);
    else expect(failed, implementation).toEqual(expect.arrayContaining([...FOUND[implementation]!]));
  }
});
