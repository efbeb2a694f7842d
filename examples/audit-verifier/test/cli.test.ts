/** The command as auditors run it: a process, files, an exit code. */
import { execFile } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { toBase64 } from '@keyguard/core/bytes';
import { afterAll, describe, expect, test } from 'vitest';
import { exportOf, headOf, macSecrets, newLog, publicKey } from './log.ts';

const main = fileURLToPath(new URL('../src/cli/main.ts', import.meta.url));
const folder = await mkdtemp(join(tmpdir(), 'keyguard-audit-'));
const { database, notes } = await newLog();
const write = async (name: string, text: string): Promise<string> => {
  await writeFile(join(folder, name), text);
  return name;
};

const whole = await write('export.jsonl', `${(await exportOf(database)).join('\n')}\n`);
const edited = structuredClone(database);
edited.records[33] = { ...edited.records[33]!, bytes: Buffer.from(Buffer.from(edited.records[33]!.bytes).toString().replace('success', 'refused')) };
const attacked = await write('attacked.jsonl', (await exportOf(edited)).join('\n'));
const cut = await write('cut.jsonl', (await exportOf(database)).slice(0, 20).join('\n'));
const short = { ...structuredClone(database), records: database.records.slice(0, 35), checkpoint: null };
const restored = await write('restored.jsonl', (await exportOf({ ...short, head: headOf(short.records) })).join('\n'));
const checkpoints = await Promise.all([...notes].map(([size, note]) => write(`${size}.checkpoint`, note)));
const keyFile = await write('key.txt', `# the key of the log\n${publicKey}\n`);
const macFile = await write('mac-keys.txt', [...macSecrets].map(([id, key]) => `${id}=${toBase64(key)}\n`).join(''));

interface Ended {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

function run(...args: readonly string[]): Promise<Ended> {
  // As a package manager starts it: in the folder of the package, saying where it was called from.
  const options = { cwd: fileURLToPath(new URL('..', import.meta.url)), env: { ...process.env, INIT_CWD: folder } };
  return new Promise((resolve) => {
    execFile(process.execPath, ['--conditions=@keyguard/source', main, ...args], options, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
    });
  });
}
const kept = checkpoints.flatMap((path) => ['--checkpoint', path]);

describe('verify', { timeout: 60_000 }, () => {
  afterAll(() => rm(folder, { recursive: true }));

  test('ends with 0 and says how far an intact log is proven', async () => {
    const { code, stdout, stderr } = await run(whole, '--key', publicKey, ...kept);
    expect([code, stderr]).toEqual([0, '']);
    expect(stdout).toMatch(/^The log is intact\.\n/);
    expect(stdout).toContain('61 records; the first 60 are proven by a checkpoint, 1 after them not yet.');
    expect(stdout).toContain('MACs were not checked');
    expect((await run(whole, '--key-file', keyFile, '--mac-keys', macFile, ...kept)).stdout).toContain('All MACs are right.');
  });

  test('ends with 1 and names the attack and where it was: the range, and with the MAC keys the entry', async () => {
    const without = await run(attacked, '--key', publicKey, ...kept);
    expect(without.code).toBe(1);
    expect(without.stdout).toContain('edit: An entry was changed.\n  Where: somewhere in entries 30 to 39\n');
    const withKeys = await run(attacked, '--key', publicKey, ...kept, '--mac-keys', macFile);
    expect(withKeys.code).toBe(1);
    expect(withKeys.stdout).toContain('edit: An entry was changed.\n  Where: entry 33\n');
    const old = await run(restored, '--key', publicKey, ...kept, '--json');
    expect(old.code).toBe(1);
    expect(JSON.parse(old.stdout)).toMatchObject({ verdict: 'attacked', findings: [{ attack: 'restored-old-database', range: { from: 35, to: 60 } }] });
  });

  test('ends with 2 where nothing can be said, and does not call that intact', async () => {
    const cases: [string[], RegExp][] = [
      [[cut, '--key', publicKey], /^Nothing was verified: The export ends after line 20/],
      [[whole], /^Nothing was verified: Give the public key/],
      [[], /^Nothing was verified: Give one export/],
      [['none', '--key', publicKey], /^Nothing was verified: ENOENT/],
      // Two faults at once: the one that is found second must not end the process as an attack.
      [['none', '--key', 'no key'], /^Nothing was verified: ENOENT/],
      [['.', '--key', publicKey], /^Nothing was verified: EISDIR/],
      [[whole, '--key', `${publicKey}x`], /^Nothing was verified: /],
      [[whole, '--key', publicKey, '--mac-keys', keyFile], /^Nothing was verified: MAC keys are given/],
      [[whole, '--unknown'], /^Nothing was verified: /],
    ];
    for (const [args, message] of cases) {
      const { code, stdout, stderr } = await run(...args);
      expect([code, stdout]).toEqual([2, '']);
      expect(stderr).toMatch(message);
    }
    const bare = await write('bare.jsonl', (await exportOf({ ...database, checkpoint: null })).join('\n'));
    const { code, stdout } = await run(bare, '--key', publicKey);
    expect(code).toBe(2);
    expect(stdout).toMatch(/^Nothing is wrong in itself, but no checkpoint vouches for this log\.\n/);
  });
});
