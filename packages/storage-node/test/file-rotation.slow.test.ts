/** What is left of a name's keys on the disk when a process that replaces them is killed, at every step, and in races: KEYGUARD_KILL_ROUNDS says how often, three times without it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { utf8 } from '@keyguard/core/bytes';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { SigningKey } from '@keyguard/core/seams';
import { fileKeyStore } from '@keyguard/storage-node/file';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { RotationOrders } from './key-rotation-process.ts';

const PROGRAM = fileURLToPath(new URL('./key-rotation-process.ts', import.meta.url));
const NAME = 'a';
const AT_ONCE = 6;
const ROUNDS = Array.from({ length: Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 3) }, (_, i) => i + 1);

let base: string;
let counter = 0;

beforeAll(async () => {
  base = await mkdtemp(join(tmpdir(), 'keyguard-file-rotation-'));
});
afterAll(() => rm(base, { recursive: true, force: true }));

function newDirectory(): string {
  counter += 1;
  return join(base, `place-${counter}`);
}

async function expectToSign(key: SigningKey | null): Promise<void> {
  const primitives = webCryptoPrimitives();
  const verifyKey = await primitives.importPublicKey(key!.publicKey);
  expect(await primitives.verify(verifyKey, utf8('message'), new Uint8Array(await key!.sign(utf8('message'))))).toBe(true);
}

interface Ended {
  readonly signal: NodeJS.Signals | null;
  /** What it said, in order; the last line may have been its last deed. */
  readonly said: { verb: string; keyId: string }[];
}

async function runUntilItEnds(orders: RotationOrders, killAfterMs?: number): Promise<Ended> {
  const child = spawn(process.execPath, ['--conditions=@keyguard/source', PROGRAM, JSON.stringify(orders)], { stdio: ['ignore', 'pipe', 'inherit'] });
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (part: string) => {
    if (text === '' && killAfterMs !== undefined) setTimeout(() => child.kill('SIGKILL'), killAfterMs);
    text += part;
  });
  const [, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  const said = text.trim().split('\n').map((line) => {
    const [verb, keyId = ''] = line.split(' ');
    return { verb: verb!, keyId };
  });
  return { signal, said };
}

const idsOf = (said: Ended['said'], verb: string): string[] => said.filter((line) => line.verb === verb).map(({ keyId }) => keyId);

/** All that a folder holds but for what has a purpose: the key, what is pending, and the choices under the present key. */
async function garbage(directory: string, currentKeyId: string): Promise<string[]> {
  return (await readdir(directory)).filter((file) => file !== 'root.key' && !file.endsWith('.key') && !file.includes(`.${currentKeyId}.`));
}

describe.each(['promote', 'discard'] as const)('a process that is killed before any one change of what is on the disk, on its way to %s', { timeout: 240_000 }, (settle) => {
  it('leaves the key or the one that replaced it, never loses a pending key that it told of, and the next one carries on', async () => {
    const outcomes = new Set<string>();
    /** @returns whether the process came to its end, because it makes no more calls than that */
    async function dieBefore(call: number): Promise<boolean> {
      const directory = newDirectory();
      const first = await fileKeyStore({ directory }).getOrCreate(NAME);
      const { signal, said } = await runUntilItEnds({ options: { directory }, name: NAME, rounds: 2, settle, fault: { call, kind: 'die' } });
      const survived = said.some(({ verb }) => verb === 'done');
      expect(signal, `call ${call}`).toBe(survived ? null : 'SIGKILL');
      const settled = idsOf(said, 'settled');
      const told = idsOf(said, 'pending').at(-1);
      const store = fileKeyStore({ directory });
      const [key, pending] = [await store.get(NAME), await store.getPending(NAME)];
      await expectToSign(key);
      const before = settle === 'promote' ? (settled.at(-1) ?? first.keyId) : first.keyId;
      if (told === undefined || told === settled.at(-1)) {
        expect(key!.keyId, `call ${call}`).toBe(before);
      } else {
        // In the middle of it: the pending key is either still pending, or the deed is done.
        const done = settle === 'promote' ? key!.keyId === told : pending?.keyId !== told;
        if (!done) expect(pending?.keyId, `call ${call}`).toBe(told);
        expect(key!.keyId, `call ${call}`).toBe(done && settle === 'promote' ? told : before);
        outcomes.add(done ? 'done' : 'not yet');
      }

      const next = await store.getOrCreatePending(NAME);
      if (pending !== null) expect(next.keyId).toBe(pending.keyId);
      expect(await fileKeyStore({ directory }).promote(NAME, next.keyId)).toBe(true);
      expect((await store.get(NAME))?.keyId).toBe(next.keyId);
      await expectToSign(await store.get(NAME));
      // Nothing of former keys is left, but for the temporary files that are swept once they are old.
      expect((await garbage(directory, next.keyId)).filter((file) => !file.startsWith('.')), `call ${call}`).toEqual([]);
      return survived;
    }

    let calls = 0;
    for (let survived = false; !survived; calls += AT_ONCE) {
      const ends = await Promise.all(Array.from({ length: AT_ONCE }, (_, i) => dieBefore(calls + i + 1)));
      survived = ends.at(-1)!;
    }
    // It was stopped on both sides of the one step that counts, and a whole run changes no less than this.
    // (What follows a discard on the disk comes after it was told of.)
    expect([...outcomes].toSorted()).toEqual(settle === 'promote' ? ['done', 'not yet'] : ['not yet']);
    expect(calls).toBeGreaterThan(12);
  });
});

describe('a process of which any one call of the file system fails', { timeout: 240_000 }, () => {
  it('says so, and takes back nothing that it chose: another may have been given it', async () => {
    let told = 0;
    async function failAt(call: number): Promise<boolean> {
      const directory = newDirectory();
      const first = await fileKeyStore({ directory }).getOrCreate(NAME);
      const { said } = await runUntilItEnds({ options: { directory }, name: NAME, rounds: 1, settle: 'promote', fault: { call, kind: 'fail' } });
      const outcome = said.at(-1)!;
      if (outcome.verb !== 'done') expect(outcome, `call ${call}`).toEqual({ verb: 'failed', keyId: 'key_store_unusable' });
      const store = fileKeyStore({ directory });
      const [key, pending] = [await store.get(NAME), await store.getPending(NAME)];
      await expectToSign(key);
      const choice = (await readdir(directory)).find((file) => file.endsWith(`.${first.keyId}.0.next`));
      if (choice !== undefined) {
        const chosen = await readFile(join(directory, choice), 'utf8');
        expect([key!.keyId, pending?.keyId], `call ${call}`).toContain(chosen);
        told += 1;
      }
      const next = await store.getOrCreatePending(NAME);
      expect(await store.promote(NAME, next.keyId)).toBe(true);
      return outcome.verb === 'done';
    }
    let calls = 0;
    for (let survived = false; !survived; calls += AT_ONCE) {
      const ends = await Promise.all(Array.from({ length: AT_ONCE }, (_, i) => failAt(calls + i + 1)));
      survived = ends.at(-1)!;
    }
    expect(told).toBeGreaterThan(3);
  });
});

describe('four processes that replace one key', { timeout: 120_000 }, () => {
  const orders = (directory: string): RotationOrders => ({ options: { directory }, name: NAME, rounds: 40, settle: 'promote', fault: null });

  it('promote each pending key once, and end with one that is known', async () => {
    const directory = newDirectory();
    const first = await fileKeyStore({ directory }).getOrCreate(NAME);
    const racers = await Promise.all(Array.from({ length: 4 }, () => runUntilItEnds(orders(directory))));
    const lines = racers.flatMap(({ said }) => said);
    expect(lines.filter(({ verb }) => verb === 'done')).toHaveLength(4);
    const settled = idsOf(lines, 'settled');
    expect(new Set(settled).size).toBe(settled.length);
    expect(settled.length + idsOf(lines, 'lost').length).toBe(4 * 40);
    // Whoever lost, lost to one who settled the same key.
    for (const keyId of idsOf(lines, 'lost')) expect(settled).toContain(keyId);
    const key = await fileKeyStore({ directory }).get(NAME);
    expect(settled).toContain(key!.keyId);
    expect(key!.keyId).not.toBe(first.keyId);
    await expectToSign(key);
  });

  it.each(ROUNDS)('lose nothing when all of them are killed at work, round %i', async () => {
    const directory = newDirectory();
    const first = await fileKeyStore({ directory }).getOrCreate(NAME);
    const racers = await Promise.all(Array.from({ length: 4 }, () => runUntilItEnds({ ...orders(directory), rounds: 10_000 }, 20 + Math.random() * 200)));
    for (const { signal } of racers) expect(signal).toBe('SIGKILL');
    const lines = racers.flatMap(({ said }) => said);
    const settled = idsOf(lines, 'settled');
    expect(new Set(settled).size).toBe(settled.length);
    const store = fileKeyStore({ directory });
    const key = await store.get(NAME);
    await expectToSign(key);
    expect([first.keyId, ...idsOf(lines, 'pending')]).toContain(key!.keyId);
    const pending = await store.getPending(NAME);
    if (pending !== null) expect(settled).not.toContain(pending.keyId);
    // Nobody promotes a key before telling of it. So the one told of last, by whomever, is the key by now or is pending still.
    const lastTold = racers.flatMap(({ said }) => idsOf(said, 'pending').slice(-1));
    if (lastTold.length > 0) expect(lastTold.some((keyId) => keyId === key!.keyId || keyId === pending?.keyId)).toBe(true);
    const next = await store.getOrCreatePending(NAME);
    expect(await store.promote(NAME, next.keyId)).toBe(true);
    await expectToSign(await fileKeyStore({ directory }).get(NAME));
  });
});

describe('the files of a pending key', () => {
  async function withPending(): Promise<{ directory: string; first: SigningKey; pending: SigningKey; pendingPath: string; choicePath: string }> {
    const directory = newDirectory();
    const store = fileKeyStore({ directory });
    const first = await store.getOrCreate(NAME);
    const pending = await store.getOrCreatePending(NAME);
    const files = await readdir(directory);
    const only = (end: string): string => join(directory, files.find((file) => file.endsWith(end))!);
    return { directory, first, pending, pendingPath: only('.pending'), choicePath: only('.0.next') };
  }
  const UNUSABLE = { name: 'UsageError', code: 'key_store_unusable' };

  it('are for their owner alone, and say in clear only which keys they are about', async () => {
    const { directory, first, pending, pendingPath, choicePath } = await withPending();
    for (const path of [pendingPath, choicePath]) expect(((await stat(path)).mode & 0o777).toString(8)).toBe('600');
    expect(await readFile(choicePath, 'utf8')).toBe(pending.keyId);
    expect(pendingPath).toContain(`.${first.keyId}.${pending.keyId}.pending`);
    expect(await readdir(directory)).toHaveLength(4);
  });

  it('are gone once it is promoted or deleted, and so is the private key that was replaced', async () => {
    const { directory, pending, pendingPath } = await withPending();
    const sealed = await readFile(pendingPath);
    const store = fileKeyStore({ directory });
    await store.promote(NAME, pending.keyId);
    const files = (await readdir(directory)).filter((file) => file !== 'root.key');
    expect(files).toHaveLength(1);
    expect(await readFile(join(directory, files[0]!))).toEqual(sealed);
    await store.getOrCreatePending(NAME);
    await store.delete(NAME);
    expect(await readdir(directory)).toEqual(['root.key']);
  });

  it('never take the place of a key that works when they are damaged, swapped or misnamed', async () => {
    const { directory, first, pending, pendingPath, choicePath } = await withPending();
    const good = await readFile(pendingPath);
    const refused = async (): Promise<void> => {
      const store = fileKeyStore({ directory });
      for (const verb of ['promote', 'discard'] as const) await expect(store[verb](NAME, pending.keyId)).rejects.toMatchObject(UNUSABLE);
      await expect(store.getPending(NAME)).rejects.toMatchObject(UNUSABLE);
      await expect(store.getOrCreatePending(NAME)).rejects.toMatchObject(UNUSABLE);
      expect((await store.get(NAME))?.keyId).toBe(first.keyId);
    };
    for (let at = 0; at < good.length; at += 29) {
      const bad = Buffer.from(good);
      bad[at]! ^= 1;
      await writeFile(pendingPath, bad);
      await refused();
    }
    await writeFile(pendingPath, await readFile(join(directory, (await readdir(directory)).find((file) => file.endsWith('.key') && file.startsWith('device-'))!)));
    await refused();
    await writeFile(pendingPath, good);
    for (const choice of ['', '../../../etc/passwd', 'x'.repeat(43), 'x'.repeat(44), '\u00ff'.repeat(20)]) {
      await writeFile(choicePath, choice);
      await refused();
    }
    await writeFile(choicePath, pending.keyId);
    expect(await fileKeyStore({ directory }).promote(NAME, pending.keyId)).toBe(true);
    await expectToSign(await fileKeyStore({ directory }).get(NAME));
  });
});
