/** Processes that share one folder of keys, and are killed at work. KEYGUARD_KILL_ROUNDS says how often; three times without it. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm, utimes } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { utf8 } from '@keyguard/core/bytes';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { SigningKey } from '@keyguard/core/seams';
import { fileKeyStore, type FileKeyStoreOptions } from '@keyguard/storage-node/file';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const ROUNDS = Array.from({ length: Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 3) }, (_, i) => i + 1);
const PASSPHRASE = 'correct horse battery staple';
const PROGRAM = fileURLToPath(new URL('./key-store-process.ts', import.meta.url));

let base: string;
let counter = 0;

beforeAll(async () => {
  base = await mkdtemp(join(tmpdir(), 'keyguard-file-'));
});
afterAll(() => rm(base, { recursive: true, force: true }));

function newDirectory(): string {
  counter += 1;
  return join(base, `place-${counter}`);
}

async function expectToSign(key: SigningKey): Promise<void> {
  const primitives = webCryptoPrimitives();
  const verifyKey = await primitives.importPublicKey(key.publicKey);
  const signature = new Uint8Array(await key.sign(utf8('message')));
  expect(await primitives.verify(verifyKey, utf8('message'), signature)).toBe(true);
}

interface Racer {
  readonly child: ChildProcess;
  readonly ready: Promise<void>;
  readonly lines: string[];
  readonly ended: Promise<unknown>;
}

function startRacer(options: FileKeyStoreOptions, names: readonly string[], shell?: string): Racer {
  const parameters = ['--conditions=@keyguard/source', PROGRAM, JSON.stringify({ options, names })];
  const child =
    shell === undefined
      ? spawn(process.execPath, parameters, { stdio: ['pipe', 'pipe', 'inherit'] })
      : spawn('sh', ['-c', `${shell}; exec "$@"`, 'sh', process.execPath, ...parameters], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines: string[] = [];
  let rest = '';
  let isReady: () => void;
  const ready = new Promise<void>((resolve) => {
    isReady = resolve;
  });
  child.stdout!.setEncoding('utf8').on('data', (text: string) => {
    const parts = (rest + text).split('\n');
    rest = parts.pop()!;
    for (const line of parts) {
      if (line === 'ready') isReady();
      else lines.push(line);
    }
  });
  child.stdin!.on('error', () => {});
  return { child, ready, lines, ended: once(child, 'close') };
}

/** What all racers say of each name: one key id, or the racers disagree. */
function acknowledged(racers: readonly Racer[]): Map<string, Set<string>> {
  const said = new Map<string, Set<string>>();
  for (const line of racers.flatMap(({ lines }) => lines)) {
    const [verb, name, keyId] = line.split(' ');
    expect(verb, line).toBe('key');
    said.set(name!, (said.get(name!) ?? new Set()).add(keyId!));
  }
  return said;
}

describe('eight processes', { timeout: 120_000 }, () => {
  const names = Array.from({ length: 12 }, (_, i) => `name-${i}`);

  async function race(options: FileKeyStoreOptions, kill?: (racers: readonly Racer[]) => void): Promise<Racer[]> {
    const racers = Array.from({ length: 8 }, () => startRacer(options, names));
    await Promise.all(racers.map(({ ready }) => ready));
    for (const { child } of racers) child.stdin!.write('go');
    kill?.(racers);
    await Promise.all(racers.map(({ ended }) => ended));
    return racers;
  }

  it.each([1, 2, 3])('get the same keys, round %i', async () => {
    const directory = newDirectory();
    const racers = await race({ directory });
    expect(racers.flatMap(({ lines }) => lines)).toHaveLength(8 * names.length);
    const said = acknowledged(racers);
    const store = fileKeyStore({ directory });
    for (const name of names) expect([...said.get(name)!]).toEqual([(await store.get(name))?.keyId]);
    expect(new Set([...said.values()].flatMap((keyIds) => [...keyIds])).size).toBe(names.length);
    expect((await readdir(directory)).filter((name) => name.startsWith('.'))).toEqual([]);
  });

  it('get the same keys under a passphrase', async () => {
    const options = { directory: newDirectory(), passphrase: PASSPHRASE };
    const said = acknowledged(await race(options));
    const store = fileKeyStore(options);
    for (const name of names) expect([...said.get(name)!]).toEqual([(await store.get(name))?.keyId]);
  });

  it.each(ROUNDS)('agree when six of them are killed at work, round %i', async () => {
    const directory = newDirectory();
    const racers = await race({ directory }, (all) => {
      for (const { child } of all.slice(2)) setTimeout(() => child.kill('SIGKILL'), Math.random() * 250);
    });
    const said = acknowledged(racers);
    // The survivors got them all, and what a killed one said before it died is what they got.
    for (const { lines } of racers.slice(0, 2)) expect(lines).toHaveLength(names.length);
    const store = fileKeyStore({ directory });
    for (const name of names) {
      const key = (await store.get(name))!;
      expect([...said.get(name)!]).toEqual([key.keyId]);
      await expectToSign(key);
    }
  });

  it.each(ROUNDS)('leave nothing torn when all of them are killed, round %i', async () => {
    const directory = newDirectory();
    const racers = await race({ directory }, (all) => {
      for (const { child } of all) setTimeout(() => child.kill('SIGKILL'), 5 + Math.random() * 150);
    });
    const said = acknowledged(racers);
    const store = fileKeyStore({ directory });
    for (const name of names) {
      const key = await store.getOrCreate(name);
      await expectToSign(key);
      const before = said.get(name);
      if (before !== undefined) expect([...before]).toEqual([key.keyId]);
    }
    for (const entry of await readdir(directory)) {
      if (!entry.startsWith('.')) continue;
      const past = Date.now() / 1000 - 120;
      await utimes(join(directory, entry), past, past);
    }
    await fileKeyStore({ directory }).getOrCreate('a');
    expect((await readdir(directory)).filter((name) => name.startsWith('.'))).toEqual([]);
  });
});

it.skipIf(process.platform === 'win32')('refuses, and leaves nothing behind, where the disk takes no more bytes', async () => {
  const directory = newDirectory();
  // A limit of 0 blocks fails every write as a full disk does.
  const racer = startRacer({ directory }, ['a'], 'ulimit -f 0');
  await racer.ready;
  racer.child.stdin!.write('go');
  await racer.ended;
  expect(racer.lines).toEqual([expect.stringMatching(/^refused key_store_unusable Keys cannot be kept at .*(?:EFBIG|ENOSPC)/)]);
  expect(await readdir(directory)).toEqual([]);
  await expectToSign(await fileKeyStore({ directory }).getOrCreate('a'));
});
