/** The recipe of enrollment, where a socket would hide what is asked of whom; N66 to N72 are in the Express adapter's suite. */
import { describe, expect, it } from 'vitest';
import type { Device, EnrollmentRequest, SigningKey } from '@keyguard/core/seams';
import { memoryDeviceRegistry, memoryKeyStore } from '@keyguard/core/memory';
import { nodePrimitives } from '@keyguard/server-verifier';
import { ALLOWED, forged, incoming, limiter, NOW_MS, openBench, REFUSED, withHeader, type Bench, type Incoming, type IncomingOptions } from './bench.ts';

const CODE = '7K3QF-0MZ8T-4V2XN-9RBCD-HE6JP-S';
const FINGERPRINT = 'A'.repeat(43);

const newKey = (): Promise<SigningKey> => memoryKeyStore().getOrCreate('device');

function enrolling(key: SigningKey, members: Record<string, unknown> = {}, options: IncomingOptions = {}): Promise<Incoming> {
  const body = JSON.stringify({ jwk: key.publicKey, code: CODE, ...members });
  return incoming(key, { target: '/api/keyguard/enroll', body, tag: 'keyguard-enroll-v1', ...options });
}

/** A registry that takes everyone, and what it was asked. */
function openRegistry(options: Parameters<typeof openBench>[0] = {}): { bench: Bench; enrolled: EnrollmentRequest[] } {
  const enrolled: EnrollmentRequest[] = [];
  const bench = openBench({
    ...options,
    registry: {
      ...memoryDeviceRegistry(),
      findByKeyId: () => null,
      enroll: (request) => {
        enrolled.push(request);
        return { outcome: 'enrolled', device: { deviceId: 'd', keyId: request.keyId, status: 'active' } as Device };
      },
    },
  });
  return { bench, enrolled };
}

async function expectRefused(bench: Bench, request: Incoming, code: string): Promise<void> {
  await expect(bench.enrollment.enroll(request)).rejects.toMatchObject({ code });
  expect(bench.asked).not.toContain('enroll');
}

it('hands the registry what was proven, and the time', async () => {
  const { bench, enrolled } = openRegistry();
  const key = await newKey();
  await bench.enrollment.enroll(await enrolling(key, { label: 'laptop' }));
  expect(enrolled).toEqual([
    { keyId: key.keyId, publicKey: key.publicKey, codeHash: 'edYXl_YjI47WjeXBzto44dqpWZPv1P7dKqVSha1wi0A', label: 'laptop', fingerprint: null, nowMs: NOW_MS },
  ]);
});

describe('the fingerprint', () => {
  it('is keyed again before it is kept', async () => {
    const { bench, enrolled } = openRegistry({ keyFingerprint: async (fingerprint) => `keyed(${fingerprint})` });
    await bench.enrollment.enroll(await enrolling(await newKey(), { fingerprint: FINGERPRINT }));
    await bench.enrollment.enroll(await enrolling(await newKey()));
    expect(enrolled.map(({ fingerprint }) => fingerprint)).toEqual([`keyed(${FINGERPRINT})`, null]);
  });

  it('is dropped where nobody said how to key it', async () => {
    const { bench, enrolled } = openRegistry();
    await bench.enrollment.enroll(await enrolling(await newKey(), { fingerprint: FINGERPRINT }));
    expect(enrolled[0]!.fingerprint).toBeNull();
  });

  it('that cannot be keyed is an outage, not an enrollment without it', async () => {
    const { bench } = openRegistry({ keyFingerprint: () => Promise.reject(new Error('no key')) });
    await expectRefused(bench, await enrolling(await newKey(), { fingerprint: FINGERPRINT }), 'store_unavailable');
  });
});

it.each(['', 'x', 'U'.repeat(26), '0'.repeat(25), `${CODE}\u00a0`])('a code that is none (%j) never reaches a registry, not even one that needs no code', async (code) => {
  const { bench, enrolled } = openRegistry();
  await expectRefused(bench, await enrolling(await newKey(), { code }), 'enrollment_rejected');
  // The control: without any code this registry lets everyone in.
  await bench.enrollment.enroll(await enrolling(await newKey(), { code: null }));
  expect(enrolled.map(({ codeHash }) => codeHash)).toEqual([null]);
});

it('a limiter that gives no decision, or refuses, ends it before the body is read', async () => {
  for (const [answer, code] of [[undefined, 'store_unavailable'], [{}, 'store_unavailable'], [{ ...ALLOWED, allowed: 1 }, 'store_unavailable'], [REFUSED, 'rate_limited']] as const) {
    const { bench } = openRegistry({ enrollmentLimiter: limiter(ALLOWED, answer) });
    const request = await enrolling(await newKey());
    await expectRefused(bench, request, code);
    expect(request.reads.count).toBe(0);
  }
});

it('tries are counted by address, an IPv6 one by its /64', async () => {
  const keys: string[] = [];
  const { bench } = openRegistry({ enrollmentLimiter: { peek: () => ALLOWED, consume: (key) => (keys.push(key), ALLOWED) } });
  for (const ip of ['2001:db8:1:2::1', '2001:db8:1:2:3::4', '192.0.2.7', '::ffff:192.0.2.7']) await bench.enrollment.enroll(await enrolling(await newKey(), {}, { ip }));
  expect(new Set(keys).size).toBe(2);
});

it('the body is read at most once, to 4,096 bytes, and never for a head that is malformed or old', async () => {
  const { bench } = openRegistry();
  const key = await newKey();
  const malformed = withHeader(await enrolling(key), 'x-keyguard-nonce', 'x');
  const old = await enrolling(key, {}, { nowMs: NOW_MS - 301_000 });
  await expectRefused(bench, malformed, 'malformed_request');
  await expectRefused(bench, old, 'timestamp_out_of_window');
  expect([malformed.reads.count, old.reads.count]).toEqual([0, 0]);
  // Nobody has proven a key yet, so its memory counts to the address.
  const asked: [number, string][] = [];
  const body = Uint8Array.from(Buffer.from(JSON.stringify({ jwk: key.publicKey, code: CODE })));
  const good = await enrolling(key, {}, { ip: '2001:db8:1:2::3', read: ({ maxBodyBytes }, holder) => (asked.push([maxBodyBytes, holder]), body) });
  await bench.enrollment.enroll(good);
  expect(asked).toEqual([[4096, 'ip:2001:db8:1:2::/64']]);
});

it('the body must be the one whose hash was signed: another code or label with the same key is none', async () => {
  const { bench, enrolled } = openRegistry();
  const key = await newKey();
  const request = await enrolling(key);
  for (const members of [{ code: null }, { label: 'theirs' }, { fingerprint: FINGERPRINT }]) {
    await expectRefused(bench, { ...request, body: (await enrolling(key, members)).body }, 'signature_invalid');
  }
  expect(bench.asked).toEqual([]);
  await bench.enrollment.enroll(request);
  expect(enrolled).toMatchObject([{ keyId: key.keyId, label: null }]);
});

it('the key in the body is the one that the head names, and each request is good once', async () => {
  const { bench } = openRegistry();
  const [key, other] = [await newKey(), await newKey()];
  await expectRefused(bench, await enrolling(key, { jwk: other.publicKey }), 'signature_invalid');
  await expectRefused(bench, withHeader(await enrolling(key), 'x-keyguard-key-id', other.keyId), 'signature_invalid');
  const request = await enrolling(key);
  await bench.enrollment.enroll(request);
  await expect(bench.enrollment.enroll(request)).rejects.toMatchObject({ code: 'replay_detected' });
  expect(bench.asked).toEqual(['replay_store', 'enroll', 'replay_store']);
  // Named, for the audit log, once it is proven.
  expect(bench.rejections.map(({ keyId }) => keyId)).toEqual([null, null, key.keyId]);
});

it.each<[string, Record<string, unknown>]>([
  ['a label in another normal form', { label: 'Bu\u0308ro' }],
  ['a label that turns the direction of what follows', { label: 'a\u202eb' }],
  ['a label with a control character', { label: 'a\nb' }],
  ['a label of 65 characters', { label: 'x'.repeat(65) }],
  ['a fingerprint with stray bits', { fingerprint: `${'A'.repeat(42)}B` }],
  ['a fingerprint of 42 characters', { fingerprint: 'A'.repeat(42) }],
  ['another member', { owner: 'me' }],
])('%s is malformed', async (_name, members) => {
  const { bench } = openRegistry();
  await expectRefused(bench, await enrolling(await newKey(), members), 'malformed_request');
});

it('the proof must be exactly true', async () => {
  for (const answer of [1, 'yes', {}]) {
    const { bench } = openRegistry({ primitives: { ...nodePrimitives(), verify: () => answer as boolean } });
    await expectRefused(bench, await enrolling(await newKey()), 'signature_invalid');
  }
  const { bench } = openRegistry();
  await expectRefused(bench, forged(await enrolling(await newKey())), 'signature_invalid');
  expect(bench.rejections).toMatchObject([{ keyId: null, deviceId: null, error: { code: 'signature_invalid' } }]);
});

it('the time is read again before the claim', async () => {
  const { bench } = openRegistry();
  const key = await newKey();
  const body = Uint8Array.from(Buffer.from(JSON.stringify({ jwk: key.publicKey, code: CODE })));
  const request = await enrolling(key, {}, {
    read: () => {
      bench.time.nowMs += 301_000;
      return body;
    },
  });
  await expectRefused(bench, request, 'timestamp_out_of_window');
  expect(bench.asked).not.toContain('replay_store');
});

it.each(['', ' ', '   ', '\u00a0', '\u3000', '\u3164', '\u115f', '\uffa0', '\u2800', '\ufe0f', '\u034f', '\u{e0100}', ' \u3164\u2800\ufe0f'])(
  'a label with nothing to be seen in it: %j',
  async (label) => {
    const { bench } = openRegistry();
    await expectRefused(bench, await enrolling(await newKey(), { label }), 'malformed_request');
  },
);

it.each(['x', 'Büro-Laptop', '❤️', '笔记本', 'a b', 'x'.repeat(64), '😀'.repeat(64)])('a label that shows what it is: %j', async (label) => {
  const { bench, enrolled } = openRegistry();
  await bench.enrollment.enroll(await enrolling(await newKey(), { label }));
  expect(enrolled[0]!.label).toBe(label);
});
