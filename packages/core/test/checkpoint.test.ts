import { createPrivateKey, randomBytes, sign } from 'node:crypto';
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { sealEntry } from '../src/audit.ts';
import {
  auditCheckpoint,
  checkpointText,
  checkpointVerifier,
  headMacOf,
  readRestore,
  restoreEntry,
  signCheckpoint,
  verifierKey,
  verifyCheckpoint,
  type Checkpoint,
} from '../src/checkpoint.ts';
import { canonicalJson } from '../src/canonical-json.ts';
import { utf8 } from '../src/bytes.ts';
import type { Bytes, CheckpointSigner } from '../src/seams.ts';
import { sumdbJudge } from './sumdb-judge.ts';

type Verdict = 'valid' | 'invalid';
interface HexCheckpoint {
  origin: string;
  size: number;
  root: string;
  extensions: string[];
  headMac?: string;
}
interface VerifyVector {
  tcId: number;
  comment: string;
  note: string;
  verifierKeys: string[];
  checkpoint?: HexCheckpoint;
  result: Verdict;
  sumdb: Verdict;
}
interface KeyVector {
  tcId: number;
  comment: string;
  verifierKey: string;
  name?: string;
  publicKey?: string;
  result: Verdict;
  sumdb: Verdict;
}
interface Key {
  name: string;
  seed: string;
  publicKey: string;
  verifierKey: string;
}
const vectors = JSON.parse(readFileSync(new URL('../../../vectors/checkpoint.json', import.meta.url), 'utf8')) as {
  numberOfTests: number;
  testGroups: [
    { tests: VerifyVector[] },
    { key: Key; tests: { tcId: number; comment: string; checkpoint: HexCheckpoint; note: string }[] },
    { tests: { tcId: number; comment: string; extensions: string[]; headMac?: string; result: Verdict }[] },
    { tests: KeyVector[] },
  ];
};
const [verifying, signing, headMacs, verifierKeys] = vectors.testGroups;

const fromHex = (hex: string): Bytes => new Uint8Array(Buffer.from(hex, 'hex'));
const toHex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const fromHexCheckpoint = ({ origin, size, root, extensions }: HexCheckpoint): Checkpoint => ({ origin, size, root: fromHex(root), extensions });

const invalid = { name: 'RejectedError', code: 'checkpoint_invalid' };
const usage = { name: 'UsageError', code: 'invalid_option' };

// RFC 8410: what stands before the seed in PKCS #8.
const PKCS8 = Buffer.from('302e020100300506032b657004220420', 'hex');
function nodeSigner({ seed, publicKey }: Pick<Key, 'seed' | 'publicKey'>): CheckpointSigner {
  const key = createPrivateKey({ key: Buffer.concat([PKCS8, fromHex(seed)]), format: 'der', type: 'pkcs8' });
  return { publicKey: fromHex(publicKey), sign: (data) => new Uint8Array(sign(null, data, key)) };
}

async function webCryptoSigner(): Promise<CheckpointSigner> {
  const { privateKey, publicKey } = (await crypto.subtle.generateKey('Ed25519', false, ['sign', 'verify'])) as CryptoKeyPair;
  return {
    publicKey: new Uint8Array(await crypto.subtle.exportKey('raw', publicKey)),
    sign: async (data) => new Uint8Array(await crypto.subtle.sign('Ed25519', privateKey, data)),
  };
}

const origin = 'keyguard.test/audit';
const root = new Uint8Array(randomBytes(32));
const checkpoint: Checkpoint = { origin, size: 7, root, extensions: [] };

describe('vectors', () => {
  test('are all there', () => {
    expect(vectors.testGroups.reduce((sum, { tests }) => sum + tests.length, 0)).toBe(vectors.numberOfTests);
  });

  test.each(verifying.tests)('$tcId $result: $comment', async (v) => {
    const verifiers = await Promise.all(v.verifierKeys.map((text) => checkpointVerifier(text)));
    const verified = verifyCheckpoint(v.note, verifiers);
    if (v.result === 'invalid') {
      await expect(verified).rejects.toMatchObject(invalid);
    } else {
      expect(await verified).toEqual(fromHexCheckpoint(v.checkpoint!));
      const mac = headMacOf(await verified);
      expect(mac === null ? undefined : toHex(mac)).toBe(v.checkpoint!.headMac);
    }
  });

  test.each(signing.tests)('$tcId is signed to the very same note: $comment', async ({ checkpoint: given, note }) => {
    expect(await signCheckpoint(fromHexCheckpoint(given), nodeSigner(signing.key))).toBe(note);
  });

  test.each(headMacs.tests)('$tcId $result head MAC: $comment', ({ extensions, headMac, result }) => {
    const read = (): Bytes | null => headMacOf({ ...checkpoint, extensions });
    if (result === 'invalid') expect(read).toThrow(expect.objectContaining(invalid));
    else expect(read()).toEqual(headMac === undefined ? null : fromHex(headMac));
  });

  test.each(verifierKeys.tests)('$tcId $result verifier key: $comment', async ({ verifierKey: text, name, publicKey, result }) => {
    if (result === 'invalid') {
      await expect(checkpointVerifier(text)).rejects.toMatchObject(usage);
    } else {
      expect((await checkpointVerifier(text)).name).toBe(name);
      // A name that is not ASCII may be a witness's, and never one of ours.
      if (/^[!-~]*$/.test(name!)) expect(await verifierKey(name!, fromHex(publicKey!))).toBe(text);
      else await expect(verifierKey(name!, fromHex(publicKey!))).rejects.toMatchObject(usage);
    }
  });
});

describe('a checkpoint', () => {
  test('comes back as it was signed, whatever it says', async () => {
    const signer = await webCryptoSigner();
    const line = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 30 }).filter((text) => [...text].every((character) => character >= ' '));
    const property = fc.asyncProperty(
      fc.string({ unit: fc.constantFrom(...'abz019/.-_~!@[]'), minLength: 1, maxLength: 255 }),
      fc.maxSafeNat(),
      fc.uint8Array({ minLength: 32, maxLength: 32 }),
      fc.array(line, { maxLength: 3 }),
      async (name, size, bytes, extensions) => {
        const given = { origin: name, size, root: new Uint8Array(bytes), extensions };
        const verifier = await checkpointVerifier(await verifierKey(name, signer.publicKey));
        expect(await verifyCheckpoint(await signCheckpoint(given, signer), [verifier])).toEqual(given);
      },
    );
    await fc.assert(property, { numRuns: 50 });
  });

  test('does not verify with any one byte of it changed', async () => {
    const signer = await webCryptoSigner();
    const note = await signCheckpoint(checkpoint, signer);
    const verifier = await checkpointVerifier(await verifierKey(origin, signer.publicKey));
    for (let at = 0; at < note.length; at += 1) {
      for (const other of ['A', '0', '\n', ' ']) {
        if (note[at] === other) continue;
        await expect(verifyCheckpoint(note.slice(0, at) + other + note.slice(at + 1), [verifier])).rejects.toMatchObject(invalid);
      }
      await expect(verifyCheckpoint(note.slice(0, at), [verifier])).rejects.toMatchObject(invalid);
    }
  });

  test('that is no text is refused', async () => {
    const signer = await webCryptoSigner();
    const verifier = await checkpointVerifier(await verifierKey(origin, signer.publicKey));
    // A lone surrogate would become U+FFFD, and the signature over that would hold.
    const replaced = await signCheckpoint({ ...checkpoint, extensions: ['a\ufffd'] }, signer);
    await verifyCheckpoint(replaced, [verifier]);
    await expect(verifyCheckpoint(replaced.replace('\ufffd', '\ud800'), [verifier])).rejects.toMatchObject(invalid);
    for (const rubbish of [null, undefined, 7, utf8(replaced)] as unknown[]) {
      await expect(verifyCheckpoint(rubbish as string, [verifier])).rejects.toMatchObject(invalid);
    }
  });

  test.each([
    ['an origin with a space', { origin: 'a b' }],
    ['an origin with a plus sign', { origin: 'a+b' }],
    ['no origin', { origin: '' }],
    ['a negative size', { size: -1 }],
    ['a size that is no integer', { size: 0.5 }],
    ['a size of 2^53', { size: 2 ** 53 }],
    ['a root of 31 bytes', { root: new Uint8Array(31) }],
    ['an empty extension', { extensions: [''] }],
    ['an extension of two lines', { extensions: ['a\nb'] }],
    ['an extension with a lone surrogate', { extensions: ['\udc00'] }],
    ['an extension without end', { extensions: ['x'.repeat(65_536)] }],
  ])('with %s is not signed', async (_, part) => {
    await expect(signCheckpoint({ ...checkpoint, ...part }, await webCryptoSigner())).rejects.toMatchObject(usage);
  });

  test('is not handed out with what is no signature by its key', async () => {
    const signer = await webCryptoSigner();
    const other = await webCryptoSigner();
    const outage = { name: 'UnavailableError', seam: 'checkpoint_signer' };
    for (const answer of [new Uint8Array(64), new Uint8Array(63), null, await other.sign(utf8(checkpointText(checkpoint)))]) {
      await expect(signCheckpoint(checkpoint, { ...signer, sign: () => answer as Bytes })).rejects.toMatchObject(outage);
    }
    await expect(signCheckpoint(checkpoint, { ...signer, publicKey: new Uint8Array(31) })).rejects.toMatchObject(usage);
  });

  test('is not judged by two verifiers that cannot be told apart', async () => {
    const signer = await webCryptoSigner();
    const verifier = await checkpointVerifier(await verifierKey(origin, signer.publicKey));
    await expect(verifyCheckpoint(await signCheckpoint(checkpoint, signer), [verifier, verifier])).rejects.toMatchObject(usage);
  });

  test('of an audit chain holds the MAC of the last record', async () => {
    const headMac = new Uint8Array(randomBytes(32));
    const made = auditCheckpoint({ origin, size: 7, root, headMac });
    expect(checkpointText(made).split('\n')[3]).toBe(`keyguard-head-mac ${Buffer.from(headMac).toString('base64')}`);
    expect(headMacOf(made)).toEqual(headMac);
    expect(() => auditCheckpoint({ origin, size: 7, root, headMac: new Uint8Array(31) })).toThrow(expect.objectContaining(usage));
  });

  test('is read in time that grows with its length only', async () => {
    const signer = await webCryptoSigner();
    const verifier = await checkpointVerifier(await verifierKey(origin, signer.publicKey));
    for (const hostile of ['\n'.repeat(65_536), '— '.repeat(32_768), `${'a\n'.repeat(32_000)}\n— a A\n`, `\n\n— ${'a'.repeat(65_000)}\n`, '\n\n'.repeat(32_768)]) {
      const start = performance.now();
      await expect(verifyCheckpoint(hostile, [verifier])).rejects.toMatchObject(invalid);
      expect(performance.now() - start).toBeLessThan(250);
    }
  });
});

describe('an acknowledged restore', () => {
  const restore = { actor: 'user:1', oldCheckpoint: 'a\n8\nb\n\n— a c\n', keptSize: 5, keptRoot: root };

  test('is read from the first entry as it was written', async () => {
    const key = { keyId: 'k', mac: () => new Uint8Array(32) };
    const { bytes } = await sealEntry({ origin, seq: 0, prevMac: new Uint8Array(32), nowMs: 0, key, entry: restoreEntry(restore) });
    expect(readRestore(bytes)).toEqual(restore);
    const other = await sealEntry({ origin, seq: 0, prevMac: new Uint8Array(32), nowMs: 0, key, entry: { action: 'a', outcome: 'success', actor: 'b' } });
    expect(readRestore(other.bytes)).toBeNull();
    expect(readRestore(utf8('null'))).toBeNull();
  });

  test('must say all that it has to', () => {
    const entry = restoreEntry(restore);
    for (const wrong of [{ actor: 1 }, { old_checkpoint: null }, { kept_size: -1 }, { kept_size: 0.5 }, { kept_size: '5' }, { kept_root: 'AA==' }, { kept_root: '?' }, { kept_root: null }]) {
      const bytes = utf8(canonicalJson({ ...entry, ...wrong }));
      expect(() => readRestore(bytes)).toThrow(expect.objectContaining({ code: 'audit_record_invalid' }));
    }
    for (const wrong of [{ keptSize: -1 }, { keptSize: 0.5 }, { keptRoot: new Uint8Array(31) }]) {
      expect(() => restoreEntry({ ...restore, ...wrong })).toThrow(expect.objectContaining(usage));
    }
  });
});

const judge = sumdbJudge();
if (judge !== null) {
  describe('golang.org/x/mod/sumdb/note', () => {
    test('says of every vector what is recorded, and signs as we do', () => {
      const opened = judge(verifying.tests.map(({ note, verifierKeys: keys }) => ({ ask: 'open', note, keys })));
      for (const [i, v] of verifying.tests.entries()) expect([v.tcId, opened[i]!.ok ? 'valid' : 'invalid']).toEqual([v.tcId, v.sumdb]);
      const { name, seed } = signing.key;
      const signed = judge(signing.tests.map(({ checkpoint: given }) => ({ ask: 'sign', name, seed, text: checkpointText(fromHexCheckpoint(given)) })));
      expect(signed.map(({ note }) => note)).toEqual(signing.tests.map(({ note }) => note));
      const keys = verifierKeys.tests.filter(({ publicKey }) => publicKey !== undefined);
      const made = judge(keys.map((v) => ({ ask: 'verifier-key', name: v.name, publicKey: v.publicKey })));
      expect(made.map(({ text }) => text)).toEqual(keys.map((v) => v.verifierKey));
    });

    test('reads what we sign with keys of our own', async () => {
      const questions: object[] = [];
      const texts: string[] = [];
      for (let size = 0; size < 20; size += 1) {
        const signer = await webCryptoSigner();
        const given = auditCheckpoint({ origin, size, root: new Uint8Array(randomBytes(32)), headMac: new Uint8Array(randomBytes(32)) });
        questions.push({ ask: 'open', note: await signCheckpoint(given, signer), keys: [await verifierKey(origin, signer.publicKey)] });
        texts.push(checkpointText(given));
      }
      expect(judge(questions).map(({ text }) => text)).toEqual(texts);
    });
  });
}
