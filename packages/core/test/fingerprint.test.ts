import { createHmac } from 'node:crypto';
import os from 'node:os';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  browserFingerprint,
  browserSignals,
  fingerprintDigest,
  nodeFingerprint,
  nodeSignals,
  webCryptoHmac,
  type BrowserScope,
  type FingerprintSignals,
} from '../src/fingerprint.ts';
import type { Bytes } from '../src/seams.ts';
import vectors from '../../../vectors/fingerprint.json' with { type: 'json' };
import { fromHex } from './portable.ts';

interface Vector {
  tcId: number;
  comment: string;
  result: string;
  signals: FingerprintSignals;
  scope: BrowserScope & { timeZone?: string };
  os: { platform: string; arch: string; cpus: { model: string }[]; totalmem: number };
  salt: string;
  saltVersion: number;
  message: string;
  digest?: string;
}
const [browser, node, digest] = vectors.testGroups.map(({ tests }) => tests as unknown as Vector[]) as [Vector[], Vector[], Vector[]];

const salt = new Uint8Array(32).fill(3);
const options = { salt, saltVersion: 1 };
const FORM = /^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$/;

const scopeOf = ({ timeZone, ...scope }: Vector['scope']): BrowserScope =>
  timeZone === undefined ? scope : { ...scope, Intl: { DateTimeFormat: () => ({ resolvedOptions: () => ({ timeZone }) }) } };

describe('vectors', () => {
  test('are all there', () => {
    expect(browser.length + node.length + digest.length).toBe(vectors.numberOfTests);
  });
  test.each(browser)('$tcId $comment', ({ scope, signals }) => {
    expect(browserSignals(scopeOf(scope))).toEqual(signals);
  });
  test.each(node)('$tcId $comment', ({ os: given, signals }) => {
    const { platform, arch, cpus, totalmem } = given;
    expect(nodeSignals({ platform: () => platform, arch: () => arch, cpus: () => cpus, totalmem: () => totalmem })).toEqual(signals);
  });
  test.each(digest)('$tcId $result: $comment', async ({ salt: key, saltVersion, signals, digest: expected, message }) => {
    const made = fingerprintDigest(signals, { salt: fromHex(key), saltVersion });
    if (expected === undefined) {
      await expect(made).rejects.toMatchObject({ name: 'UsageError', code: 'invalid_option' });
      return;
    }
    expect(await made).toBe(expected);
    expect(createHmac('sha256', Buffer.from(key, 'hex')).update(Buffer.from(message, 'hex')).digest('base64url')).toBe(expected);
  });
});

test('no signal of this machine is in the digest, and the digest is all that a provider gives', async () => {
  const signals = nodeSignals(os);
  const provider = nodeFingerprint(os, options);
  const made = await provider.digest();
  expect(made).toMatch(FORM);
  expect(await provider.digest()).toBe(made);
  expect(await fingerprintDigest(signals, options)).toBe(made);
  expect(Object.keys(provider).toSorted()).toEqual(['digest', 'saltVersion']);
  // What identifies a person or a machine is not even asked for.
  const asked: string[] = [];
  const watched = new Proxy(os, { get: (target, name) => (asked.push(String(name)), Reflect.get(target, name) as unknown) });
  nodeSignals(watched);
  expect([...new Set(asked)].toSorted()).toEqual(['arch', 'cpus', 'platform', 'totalmem']);
});

test('a browser is asked for these seven things and no other', () => {
  const asked = new Set<string>();
  const watch = (target: object, path: string): object =>
    new Proxy(target, {
      get: (_, name) => {
        asked.add(`${path}${String(name)}`);
        const value = Reflect.get(target, name) as unknown;
        return typeof value === 'object' && value !== null ? watch(value, `${path}${String(name)}.`) : value;
      },
    });
  const scope = {
    navigator: { platform: 'Win32', userAgentData: { platform: '' }, language: 'en', hardwareConcurrency: 4, plugins: [], userAgent: 'x' },
    screen: { width: 100, height: 100, colorDepth: 24 },
    Intl: { DateTimeFormat: () => ({ resolvedOptions: () => ({ timeZone: 'UTC' }) }) },
    document: {},
  };
  browserSignals(watch(scope, '') as BrowserScope);
  expect([...asked].filter((path) => path.includes('.')).toSorted()).toEqual([
    'Intl.DateTimeFormat',
    'navigator.hardwareConcurrency',
    'navigator.language',
    'navigator.platform',
    'navigator.userAgentData',
    'navigator.userAgentData.platform',
    'screen.height',
    'screen.width',
  ]);
  expect(asked.has('document')).toBe(false);
});

test('a platform that throws wherever it is asked has a fingerprint as well', async () => {
  const fail = (): never => {
    throw new Error('no');
  };
  const scope = new Proxy({}, { get: fail }) as BrowserScope;
  expect(Object.values(browserSignals(scope))).toEqual(['browser', ...Array.from({ length: 6 }, () => 'unknown')]);
  expect(await browserFingerprint(options, scope).digest()).toMatch(FORM);
  const signals = nodeSignals({ platform: fail, arch: fail, cpus: fail, totalmem: fail });
  expect(Object.values(signals)).toEqual(['node', ...Array.from({ length: 5 }, () => 'unknown')]);
});

test('two devices share a digest only where all signals are equal', async () => {
  const text = fc.dictionary(fc.string({ maxLength: 4 }), fc.string({ maxLength: 4 }), { maxKeys: 3 });
  const property = fc.asyncProperty(text, text, fc.integer({ min: 1, max: 3 }), fc.integer({ min: 1, max: 3 }), async (one, other, v1, v2) => {
    const same = v1 === v2 && JSON.stringify(Object.entries(one).toSorted()) === JSON.stringify(Object.entries(other).toSorted());
    const digests = [await fingerprintDigest(one, { salt, saltVersion: v1 }), await fingerprintDigest(other, { salt, saltVersion: v2 })];
    expect(digests[0] === digests[1]).toBe(same);
  });
  await fc.assert(property);
});

test('refuses at once what would fail later', () => {
  const usage = expect.objectContaining({ name: 'UsageError', code: 'invalid_option' }) as Error;
  expect(() => browserFingerprint({ salt: new Uint8Array(16), saltVersion: 1 })).toThrow(usage);
  expect(() => nodeFingerprint(os, { salt, saltVersion: 0 })).toThrow(usage);
});

test('text that is not Unicode is no signal', async () => {
  await expect(fingerprintDigest({ model: 'a\ud800' }, options)).rejects.toMatchObject({ code: 'json_not_canonical' });
  expect(browserSignals({ navigator: { language: 'a\ud800' } })['language']).toBe('unknown');
});

test('an hmac of another kind is noticed', async () => {
  const short = async (key: Bytes, data: Bytes): Promise<Bytes> => (await webCryptoHmac()(key, data)).slice(0, 16);
  await expect(fingerprintDigest({}, { ...options, hmac: short })).rejects.toMatchObject({ code: 'invalid_option' });
});
