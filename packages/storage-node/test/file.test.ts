import { EventEmitter, once } from 'node:events';
import { chmod, copyFile, link, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { utf8 } from '@keyguard/core/bytes';
import { webCryptoPrimitives } from '@keyguard/core/primitives';
import type { KeyStore, SigningKey } from '@keyguard/core/seams';
import { fileKeyProvider, fileKeyStore, passphraseKeyProvider, type FileKeyStoreOptions } from '@keyguard/storage-node/file';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

const PASSPHRASE = 'correct horse battery staple';
const UNUSABLE = { name: 'UsageError', code: 'key_store_unusable' };

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

/** A folder with the key `a` in it. */
async function withKey(options: Omit<FileKeyStoreOptions, 'directory'> = {}): Promise<{ directory: string; file: string; key: SigningKey }> {
  const directory = newDirectory();
  const key = await fileKeyStore({ directory, ...options }).getOrCreate('a');
  return { directory, file: await keyFileOf(directory), key };
}

async function keyFileOf(directory: string): Promise<string> {
  const file = (await readdir(directory)).find((name) => name.startsWith('device-'));
  return join(directory, file!);
}

async function modeOf(path: string): Promise<string> {
  return ((await stat(path)).mode & 0o777).toString(8);
}

async function expectRefusal(store: KeyStore, message: RegExp | string): Promise<void> {
  const refusal = { ...UNUSABLE, message: expect.stringMatching(message) };
  await expect(store.get('a')).rejects.toMatchObject(refusal);
  await expect(store.getOrCreate('a')).rejects.toMatchObject(refusal);
}

async function expectToSign(key: SigningKey): Promise<void> {
  const primitives = webCryptoPrimitives();
  const verifyKey = await primitives.importPublicKey(key.publicKey);
  const signature = new Uint8Array(await key.sign(utf8('message')));
  expect(await primitives.verify(verifyKey, utf8('message'), signature)).toBe(true);
}

describe('fileKeyStore', () => {
  it('makes a folder and files that no one else can read, whatever the umask', async () => {
    const before = process.umask(0);
    try {
      const { directory } = await withKey();
      expect(await modeOf(directory)).toBe('700');
      const files = await readdir(directory);
      expect(files.toSorted()).toEqual([expect.stringMatching(/^device-[0-9a-f]{64}\.key$/), 'root.key']);
      for (const file of files) expect(await modeOf(join(directory, file)), file).toBe('600');
    } finally {
      process.umask(before);
    }
  });

  it('writes neither the private key nor the root key in clear', async () => {
    const exported: Uint8Array[] = [];
    const { subtle } = globalThis.crypto;
    const spying = {
      getRandomValues: <T extends ArrayBufferView>(array: T): T => globalThis.crypto.getRandomValues(array as never) as T,
      subtle: new Proxy(subtle, {
        get: (target, property) => {
          const method = Reflect.get(target, property) as (...parameters: unknown[]) => Promise<unknown>;
          return async (...parameters: unknown[]) => {
            const answer = await method.apply(target, parameters);
            if (property === 'exportKey' && parameters[0] === 'pkcs8') exported.push(new Uint8Array(answer as ArrayBuffer).slice());
            return answer;
          };
        },
      }),
    } as unknown as Crypto;
    const { file, directory } = await withKey({ crypto: spying });
    expect(exported).toHaveLength(1);
    const written = await readFile(file);
    const root = await readFile(join(directory, 'root.key'));
    // The secret scalar lies at 36 to 68 of P-256 in PKCS #8.
    const scalar = Buffer.from(exported[0]!.slice(36, 68));
    for (const secret of [scalar, root]) {
      for (const encoding of ['base64', 'base64url', 'hex'] as const) {
        expect(written.includes(secret.toString(encoding).slice(0, 40))).toBe(false);
      }
      expect(written.includes(secret)).toBe(false);
    }
  });

  it('wipes the exported private key, and holds only a key that cannot be exported', async () => {
    const buffers: ArrayBuffer[] = [];
    const imported: boolean[] = [];
    const { subtle } = globalThis.crypto;
    const spying = {
      getRandomValues: <T extends ArrayBufferView>(array: T): T => globalThis.crypto.getRandomValues(array as never) as T,
      subtle: new Proxy(subtle, {
        get: (target, property) => {
          const method = Reflect.get(target, property) as (...parameters: unknown[]) => Promise<unknown>;
          return async (...parameters: unknown[]) => {
            if (property === 'importKey' && parameters[0] === 'pkcs8') {
              buffers.push((parameters[1] as Uint8Array<ArrayBuffer>).buffer);
              imported.push(parameters[3] as boolean);
            }
            const answer = await method.apply(target, parameters);
            if (property === 'exportKey' && parameters[0] === 'pkcs8') buffers.push(answer as ArrayBuffer);
            return answer;
          };
        },
      }),
    } as unknown as Crypto;
    const { key } = await withKey({ crypto: spying });
    await expectToSign(key);
    expect(buffers).toHaveLength(2);
    for (const buffer of buffers) expect(new Uint8Array(buffer).every((byte) => byte === 0)).toBe(true);
    expect(imported).toEqual([false]);
  });

  it.each([
    ['a key file', 'device', 0o640, /chmod 600/],
    ['a key file', 'device', 0o604, /chmod 600/],
    ['the root key file', 'root.key', 0o640, /chmod 600/],
    ['the root key file', 'root.key', 0o602, /chmod 600/],
  ])('refuses %s that others can reach, and says which chmod to run', async (_, which, mode, message) => {
    const { directory, file, key } = await withKey();
    const path = which === 'device' ? file : join(directory, which);
    await chmod(path, mode);
    await expectRefusal(fileKeyStore({ directory }), message);
    await chmod(path, 0o600);
    expect((await fileKeyStore({ directory }).get('a'))?.keyId).toBe(key.keyId);
  });

  it('refuses a folder that others can reach, and says which chmod to run', async () => {
    const { directory } = await withKey();
    const store = fileKeyStore({ directory });
    await store.get('a');
    for (const mode of [0o755, 0o710, 0o701]) {
      await chmod(directory, mode);
      await expectRefusal(store, /chmod 700/);
    }
  });

  it.runIf(process.geteuid?.() === 0)('refuses what belongs to another user', async () => {
    const { chown } = await import('node:fs/promises');
    const { directory, file } = await withKey();
    await chown(file, 12_345, 12_345);
    await expectRefusal(fileKeyStore({ directory }), /another user/);
    await chown(file, 0, 0);
    await chown(directory, 12_345, 12_345);
    await expectRefusal(fileKeyStore({ directory }), /another user/);
  });

  it('refuses every changed byte of a key file, and never makes a new key in its place', async () => {
    const { directory, file } = await withKey();
    const good = await readFile(file);
    for (let at = 0; at < good.length; at += 1) {
      const bad = Buffer.from(good);
      bad[at]! ^= 1;
      await writeFile(file, bad);
      const answer = await fileKeyStore({ directory }).getOrCreate('a').then(({ keyId }) => keyId, ({ code }: { code: string }) => code);
      // White space between the members is all that may change.
      const isSpace = good[at] === 0x20 || good[at] === 0x0a;
      if (!isSpace) expect(answer, `byte ${at}`).toBe('key_store_unusable');
      expect(await readFile(file)).toEqual(bad);
    }
  });

  it.each([0, 1, 100])('refuses a key file cut to %i bytes', async (length) => {
    const { directory, file } = await withKey();
    await writeFile(file, (await readFile(file)).subarray(0, length));
    await expectRefusal(fileKeyStore({ directory }), /damaged/);
    expect((await stat(file)).size).toBe(length);
  });

  it('refuses a key file that is absurdly long', async () => {
    const { directory, file } = await withKey();
    await writeFile(file, Buffer.alloc(20_000, 0x20));
    await expectRefusal(fileKeyStore({ directory }), /too long/);
  });

  it('notices a key file that was put in place of another', async () => {
    const { directory, file } = await withKey();
    const other = await withKey();
    // Of another folder, so under another root key.
    await copyFile(other.file, file);
    await expectRefusal(fileKeyStore({ directory }), /another root key/);
    // Of another name in the same folder.
    const store = fileKeyStore({ directory: other.directory });
    await store.getOrCreate('b');
    const fileOfB = (await readdir(other.directory)).find((name) => name.startsWith('device-') && !other.file.endsWith(name))!;
    await copyFile(join(other.directory, fileOfB), other.file);
    await expectRefusal(store, /another name/);
    // And with the name made to fit.
    const text = await readFile(other.file, 'utf8');
    await writeFile(other.file, text.replace('"name": "b"', '"name": "a"'));
    await expectRefusal(store, /damaged or was changed/);
  });

  it('notices a public key, or a key id, that is not the one of the private key', async () => {
    const { directory, file } = await withKey();
    const other = JSON.parse(await readFile((await withKey()).file, 'utf8')) as Record<string, unknown>;
    const own = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
    const { publicKey, keyId } = other;
    for (const change of [{ publicKey }, { keyId }, { publicKey, keyId }, { publicKey: { ...(publicKey as object), d: 'x' } }]) {
      await writeFile(file, JSON.stringify({ ...own, ...change }));
      await expectRefusal(fileKeyStore({ directory }), /damaged or was changed/);
    }
    await writeFile(file, JSON.stringify(own));
    await expectToSign((await fileKeyStore({ directory }).get('a'))!);
  });

  it('tells a wrong root key from a damaged one, and uses neither', async () => {
    const { directory, file } = await withKey();
    const rootKeyFile = join(directory, 'root.key');
    const before = await readFile(file);
    const root = await readFile(rootKeyFile);
    await writeFile(rootKeyFile, Buffer.alloc(32, 7));
    await expectRefusal(fileKeyStore({ directory }), /another root key/);
    await writeFile(rootKeyFile, root.subarray(0, 31));
    await expectRefusal(fileKeyStore({ directory }), /32 bytes/);
    await writeFile(rootKeyFile, '');
    await expectRefusal(fileKeyStore({ directory }), /32 bytes/);
    await writeFile(rootKeyFile, root);
    await expectToSign((await fileKeyStore({ directory }).get('a'))!);
    expect(await readFile(file)).toEqual(before);
  });

  it('does not begin anew where the root key or the salt is lost, also for other names', async () => {
    for (const [options, root] of [[{}, 'root.key'], [{ passphrase: PASSPHRASE }, 'passphrase.json']] as const) {
      const { directory } = await withKey(options);
      await rename(join(directory, root), join(directory, 'kept'));
      const store = fileKeyStore({ directory, ...options });
      await expectRefusal(store, /is missing.*restore it/);
      await expect(store.getOrCreate('b')).rejects.toMatchObject(UNUSABLE);
      expect(await readdir(directory)).not.toContain(root);
      await rename(join(directory, 'kept'), join(directory, root));
      await expectToSign(await store.getOrCreate('a'));
    }
  });

  it('seals under a salt that is on the disk, also after the whole folder was removed under it', async () => {
    const directory = newDirectory();
    const store = fileKeyStore({ directory, passphrase: PASSPHRASE });
    await store.getOrCreate('a');
    await rm(directory, { recursive: true });
    expect(await store.get('a')).toBeNull();
    const { keyId } = await store.getOrCreate('a');
    expect((await fileKeyStore({ directory, passphrase: PASSPHRASE }).get('a'))?.keyId).toBe(keyId);
  });

  it('says that the passphrase is wrong, and never says the passphrase', async () => {
    const { directory } = await withKey({ passphrase: PASSPHRASE });
    const error = await fileKeyStore({ directory, passphrase: 'tr0ub4dor' }).get('a').catch((caught: unknown) => caught);
    expect(error).toMatchObject({ ...UNUSABLE, message: expect.stringContaining('passphrase is not the one') });
    expect(`${(error as Error).stack} ${JSON.stringify(error)}`).not.toContain('tr0ub4dor');
    await expectToSign((await fileKeyStore({ directory, passphrase: PASSPHRASE }).get('a'))!);
  });

  it('refuses a salt file that is damaged', async () => {
    const { directory } = await withKey({ passphrase: PASSPHRASE });
    for (const text of ['', '{}', '[]', '{"format":"keyguard-passphrase-v1","kekId":"x","header":"AAAA"}']) {
      await writeFile(join(directory, 'passphrase.json'), text);
      await expectRefusal(fileKeyStore({ directory, passphrase: PASSPHRASE }), /damaged/);
    }
  });

  it('keeps the root key where it is told, and makes that folder private', async () => {
    const rootKeyFile = join(newDirectory(), 'keys', 'device-root.key');
    const { directory, key } = await withKey({ rootKeyFile });
    expect(await readdir(directory)).toHaveLength(1);
    expect(await modeOf(rootKeyFile)).toBe('600');
    expect(await modeOf(join(rootKeyFile, '..'))).toBe('700');
    expect((await fileKeyStore({ directory, rootKeyFile }).get('a'))?.keyId).toBe(key.keyId);
    await chmod(join(rootKeyFile, '..'), 0o722);
    await expectRefusal(fileKeyStore({ directory, rootKeyFile }), /chmod go-w/);
  });

  it('follows a link to a root key, and looks at the mode of what it links to', async () => {
    const { directory, key } = await withKey();
    const elsewhere = join(newDirectory(), 'root');
    await mkdir(join(elsewhere, '..'), { mode: 0o700 });
    await rename(join(directory, 'root.key'), elsewhere);
    await symlink(elsewhere, join(directory, 'root.key'));
    expect((await fileKeyStore({ directory }).get('a'))?.keyId).toBe(key.keyId);
    await chmod(elsewhere, 0o644);
    await expectRefusal(fileKeyStore({ directory }), /chmod 600/);
  });

  it.each([
    { passphrase: '' },
    { passphrase: undefined as unknown as string },
    { passphrase: PASSPHRASE, rootKeyFile: '/nowhere' },
  ])('refuses options that could weaken it unnoticed: %j', (options) => {
    expect(() => fileKeyStore({ directory: newDirectory(), ...options })).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });

  it.each(['', '\ud800', 'k'.repeat(1025)])('refuses %j as a name', async (name) => {
    const directory = newDirectory();
    const store = fileKeyStore({ directory });
    for (const verb of ['getOrCreate', 'get', 'delete'] as const) {
      await expect(store[verb](name)).rejects.toMatchObject({ code: 'invalid_option' });
    }
    await expect(stat(directory)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('can delete a key that it can no longer read', async () => {
    const { directory, file } = await withKey();
    await writeFile(file, 'garbage', { mode: 0o644 });
    await rm(join(directory, 'root.key'));
    const store = fileKeyStore({ directory });
    await store.delete('a');
    await expectToSign(await store.getOrCreate('a'));
  });
});

describe('a caller that is overtaken while it looks for a pending key', () => {
  type Release = () => void;

  /** The platform's crypto, which stops before a call of the method that is listened for, until it is released. */
  function stoppable(): { crypto: Crypto; stop: (method: keyof SubtleCrypto) => Promise<Release> } {
    const stops = new EventEmitter();
    const { subtle } = globalThis.crypto;
    const crypto = {
      getRandomValues: <T extends ArrayBufferView>(array: T): T => globalThis.crypto.getRandomValues(array as never) as T,
      subtle: new Proxy(subtle, {
        get: (target, property) => {
          const method = Reflect.get(target, property) as (...parameters: unknown[]) => Promise<unknown>;
          return async (...parameters: unknown[]) => {
            await new Promise<void>((release) => void (stops.emit(property, release) || release()));
            return method.apply(target, parameters);
          };
        },
      }),
    } as unknown as Crypto;
    return { crypto, stop: async (method) => ((await once(stops, method)) as [Release])[0] };
  }

  it('is not told of one that another, overtaken too, chose to replace a former key', async () => {
    const { directory } = await withKey();
    const store = fileKeyStore({ directory });
    const [chooser, reader] = [stoppable(), stoppable()];
    // Both have read the key that is there now: one found that nothing is pending and makes a key, the other has not looked yet.
    const makes = chooser.stop('generateKey');
    const chooserEnds = fileKeyStore({ directory, crypto: chooser.crypto }).getOrCreatePending('a');
    const releaseChooser = await makes;
    const opens = reader.stop('decrypt');
    const readerEnds = fileKeyStore({ directory, crypto: reader.crypto }).getOrCreatePending('a');
    const releaseReader = await opens;
    const promoted = await store.getOrCreatePending('a');
    expect(await store.promote('a', promoted.keyId)).toBe(true);
    // What it made is chosen for the former key, and it is about to make another one.
    const makesAgain = chooser.stop('generateKey');
    releaseChooser();
    const releaseChooserAgain = await makesAgain;
    expect((await readdir(directory)).filter((name) => name.endsWith('.0.next'))).toHaveLength(1);
    releaseReader();
    const told = await readerEnds;
    releaseChooserAgain();
    expect((await chooserEnds).keyId).toBe(told.keyId);
    expect((await store.get('a'))?.keyId).toBe(promoted.keyId);
    expect(await store.promote('a', told.keyId)).toBe(true);
    expect((await store.get('a'))?.keyId).toBe(told.keyId);
    expect((await readdir(directory)).filter((name) => name !== 'root.key')).toEqual([expect.stringMatching(/^device-[0-9a-f]{64}\.key$/)]);
  });
});

describe('a writer that was killed', () => {
  const leftover = '01234567-89ab-cdef-0123-456789abcdef';

  async function age(path: string): Promise<void> {
    const past = Date.now() / 1000 - 120;
    await utimes(path, past, past);
  }

  it('before it linked, leaves a file that does no harm and is swept once it is old', async () => {
    const { directory, file, key } = await withKey();
    const temporary = join(directory, `.${file.slice(directory.length + 1)}.${leftover}.tmp`);
    await rename(file, temporary);
    await writeFile(temporary, (await readFile(temporary)).subarray(0, 50));
    const next = await fileKeyStore({ directory }).getOrCreate('a');
    expect(next.keyId).not.toBe(key.keyId);
    // A living writer may be at work on a young one.
    expect(await readdir(directory)).toHaveLength(3);
    await age(temporary);
    expect((await fileKeyStore({ directory }).getOrCreate('a')).keyId).toBe(next.keyId);
    expect((await readdir(directory)).filter((name) => name.startsWith('.'))).toEqual([]);
  });

  it('after it linked, leaves a key that is used, and a second name for it that a deletion removes too', async () => {
    const { directory, file, key } = await withKey();
    await link(file, join(directory, `.${file.slice(directory.length + 1)}.${leftover}.tmp`));
    const store = fileKeyStore({ directory });
    expect((await store.getOrCreate('a')).keyId).toBe(key.keyId);
    await store.delete('a');
    expect(await readdir(directory)).toEqual(['root.key']);
  });

  it('of a root key leaves nothing that stays', async () => {
    const directory = newDirectory();
    await mkdir(directory, { mode: 0o700 });
    const temporary = join(directory, `.root.key.${leftover}.tmp`);
    await writeFile(temporary, 'half', { mode: 0o600 });
    await age(temporary);
    await writeFile(join(directory, '.mine.tmp'), 'not ours');
    await age(join(directory, '.mine.tmp'));
    await fileKeyStore({ directory }).getOrCreate('a');
    expect((await readdir(directory)).filter((name) => name.startsWith('.'))).toEqual(['.mine.tmp']);
  });
});

describe('fileKeyProvider', () => {
  const context = utf8('context');
  const dek = new Uint8Array(32).fill(5);

  it('wraps for the next process what only the same file unwraps', async () => {
    const path = join(newDirectory(), 'root.key');
    const [one, two] = await Promise.all([fileKeyProvider({ path }), fileKeyProvider({ path })]);
    expect(await readFile(path)).toHaveLength(32);
    expect(await modeOf(path)).toBe('600');
    expect(one.kekId).toBe(two.kekId);
    const wrapped = await one.wrap(dek, context);
    expect(wrapped.kekId).toBe(one.kekId);
    expect(await two.unwrap(wrapped, context)).toEqual(dek);
    const other = await fileKeyProvider({ path: join(newDirectory(), 'root.key') });
    expect(other.kekId).not.toBe(one.kekId);
    await expect(other.unwrap(wrapped, context)).rejects.toMatchObject({ code: 'vault_open_failed' });
  });

  it('names the key by a hash from which it cannot be told', async () => {
    const path = join(newDirectory(), 'root.key');
    const { kekId } = await fileKeyProvider({ path });
    expect(kekId).toMatch(/^file-[A-Za-z0-9_-]{22}$/);
    expect((await readFile(path)).toString('base64url')).not.toContain(kekId.slice(5, 15));
  });

  it('makes no key where one must be there', async () => {
    const path = join(newDirectory(), 'root.key');
    await expect(fileKeyProvider({ path, create: false })).rejects.toMatchObject({ ...UNUSABLE, message: expect.stringContaining('missing') });
    await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' });
    const { kekId } = await fileKeyProvider({ path });
    expect((await fileKeyProvider({ path, create: false })).kekId).toBe(kekId);
  });

  it('gives 50 racing callers one key', async () => {
    const path = join(newDirectory(), 'root.key');
    const providers = await Promise.all(Array.from({ length: 50 }, () => fileKeyProvider({ path })));
    expect(new Set(providers.map(({ kekId }) => kekId)).size).toBe(1);
  });
});

describe('passphraseKeyProvider', () => {
  const context = utf8('context');
  const dek = new Uint8Array(32).fill(6);

  it('wraps for the next process what only the same passphrase unwraps', async () => {
    const path = join(newDirectory(), 'passphrase.json');
    const [one, two] = await Promise.all([
      passphraseKeyProvider({ passphrase: PASSPHRASE, path }),
      passphraseKeyProvider({ passphrase: PASSPHRASE, path }),
    ]);
    expect(one.kekId).toBe(two.kekId);
    expect(await two.unwrap(await one.wrap(dek, context), context)).toEqual(dek);
    expect(await readFile(path, 'utf8')).not.toContain(PASSPHRASE);
    await expect(passphraseKeyProvider({ passphrase: 'another', path })).rejects.toMatchObject(UNUSABLE);
  });

  it('gives two folders two keys, also for one passphrase', async () => {
    const [one, two] = [
      await passphraseKeyProvider({ passphrase: PASSPHRASE, path: join(newDirectory(), 'p.json') }),
      await passphraseKeyProvider({ passphrase: PASSPHRASE, path: join(newDirectory(), 'p.json') }),
    ];
    expect(one.kekId).not.toBe(two.kekId);
    await expect(two.unwrap(await one.wrap(dek, context), context)).rejects.toMatchObject({ code: 'vault_open_failed' });
  });

  it('demands the file where it must be there', async () => {
    const path = join(newDirectory(), 'passphrase.json');
    await expect(passphraseKeyProvider({ passphrase: PASSPHRASE, path, create: false })).rejects.toMatchObject(UNUSABLE);
    await expect(stat(path)).rejects.toMatchObject({ code: 'ENOENT' });
  });
});
