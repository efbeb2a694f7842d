/**
 * The recipe of verification, step by step, where a socket would hide what is asked of whom. What a request on the wire must
 * not get away with is tested by the attack suites of the Express adapter.
 */
import { randomBytes } from 'node:crypto';
import { runInNewContext } from 'node:vm';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { utf8 } from '@keyguard/core/bytes';
import { thumbprint } from '@keyguard/core/keys';
import { memoryReplayStore } from '@keyguard/core/memory';
import type { Bytes, Device, DeviceRegistry, Primitives, PublicJwk, RateLimiter, SigningKey } from '@keyguard/core/seams';
import { memoryRateLimiter, nodePrimitives } from '@keyguard/server-verifier';
import { ALLOWED, AUTHORITY, forged, incoming, limiter, NOW_MS, openBench, REFUSED, withHeader, type Bench, type Incoming } from './bench.ts';

/** Demands the refusal, and that it was reported before it left, as itself. */
async function expectRefused(bench: Bench, request: Incoming, code: string): Promise<void> {
  const before = bench.rejections.length;
  await expect(bench.verifier.verify(request)).rejects.toMatchObject({ code });
  expect(bench.rejections.slice(before).map(({ error }) => error.code)).toEqual([code]);
}

/** A registry whose devices have these members beside their own. */
function overlaid(bench: Bench, members: Partial<Device>): DeviceRegistry {
  return {
    ...bench.registry,
    findByKeyId: (keyId) => {
      const device = bench.registry.findByKeyId(keyId) as Device | null;
      return device && { ...device, ...members };
    },
  };
}

async function benchOf(members: Partial<Device>, options: Parameters<typeof openBench>[0] = {}): Promise<{ bench: Bench; key: SigningKey }> {
  const devices = openBench();
  return { bench: openBench({ ...options, registry: overlaid(devices, members) }), key: await devices.enrolledKey() };
}

describe('the body', () => {
  it('is held to what its route takes, and never to more than the policy', async () => {
    const bench = openBench({ policy: { authorities: [AUTHORITY], maxBodyBytes: 1000 } });
    const key = await bench.enrolledKey();
    const limits: number[] = [];
    const verify = async (target: string, more: Parameters<typeof incoming>[1] = {}): Promise<unknown> =>
      bench.verifier.verify(await incoming(key, { target, read: ({ maxBodyBytes }) => (limits.push(maxBodyBytes), utf8('{}')), ...more }), {
        maxBodyBytes: ({ path, contentType }) => (contentType === 'application/json' && path === '/small' ? 10 : 5000),
      });
    await verify('/small?x=1');
    await verify('/large');
    expect(limits).toEqual([10, 1000]);
  });

  it('of a route whose limit cannot be told is not read, and nobody is let through', async () => {
    const bench = openBench();
    const key = await bench.enrolledKey();
    for (const answer of [Number.NaN, -1, 1.5, Number.POSITIVE_INFINITY, '10' as unknown as number, undefined as unknown as number]) {
      const request = await incoming(key);
      await expect(bench.verifier.verify(request, { maxBodyBytes: () => answer })).rejects.toMatchObject({ code: 'invalid_option' });
      expect(request.reads.count).toBe(0);
    }
    const request = await incoming(key);
    const broken = (): never => {
      throw new Error('broken');
    };
    await expect(bench.verifier.verify(request, { maxBodyBytes: broken })).rejects.toMatchObject({ name: 'UnavailableError' });
    expect(request.reads.count).toBe(0);
    const forgery = forged(await incoming(key));
    let asked = 0;
    await expect(bench.verifier.verify(forgery, { maxBodyBytes: () => (asked += 1) })).rejects.toMatchObject({ code: 'signature_invalid' });
    expect(asked).toBe(0);
  });

  it('is asked for once, and for a signed head only', async () => {
    const bench = openBench({ policy: { authorities: [AUTHORITY], ipAllowlist: ['192.0.2.0/24'] } });
    const key = await bench.enrolledKey();
    const stranger = await openBench().enrolledKey();
    const unasked: [string, Incoming, string][] = [
      ['a malformed head', withHeader(await incoming(key), 'x-keyguard-nonce', 'x'), 'malformed_request'],
      ['another version', withHeader(await incoming(key), 'x-keyguard-version', '2'), 'unsupported_version'],
      ['an old request', await incoming(key, { nowMs: NOW_MS - 301_000 }), 'timestamp_out_of_window'],
      ['a request ahead of its time', await incoming(key, { nowMs: NOW_MS + 61_000 }), 'timestamp_out_of_window'],
      ['an address that may not call', await incoming(key, { ip: '198.51.100.1' }), 'ip_not_allowed'],
      ['a bad signature', forged(await incoming(key)), 'signature_invalid'],
      ['another purpose', await incoming(key, { tag: 'keyguard-enroll-v1' }), 'signature_invalid'],
      ['an unknown key', await incoming(stranger), 'signature_invalid'],
    ];
    for (const [name, request, code] of unasked) {
      await expectRefused(bench, request, code);
      expect({ name, reads: request.reads.count }).toEqual({ name, reads: 0 });
    }
    const good = await incoming(key);
    await bench.verifier.verify(good);
    expect(good.reads.count).toBe(1);
  });

  it('is not asked for when the address called too often', async () => {
    const bench = openBench({ ipLimiter: limiter(ALLOWED, REFUSED) });
    const request = await incoming(await bench.enrolledKey());
    await expectRefused(bench, request, 'rate_limited');
    expect(request.reads.count).toBe(0);
  });

  it('counts to the device that signed, whatever address it calls from', async () => {
    const bench = openBench();
    const key = await bench.enrolledKey();
    const { deviceId } = bench.registry.findByKeyId(key.keyId) as Device;
    const holders: string[] = [];
    for (const ip of ['192.0.2.1', '2001:db8::1', null]) {
      await bench.verifier.verify(await incoming(key, { ip, read: (_policy, holder) => (holders.push(holder), Uint8Array.from(Buffer.from('{}'))) }));
    }
    expect(holders).toEqual([`device:${deviceId}`, `device:${deviceId}`, `device:${deviceId}`]);
  });

  it('must be the one whose hash was signed, and is handed on as it came', async () => {
    const bench = openBench();
    const key = await bench.enrolledKey();
    const other = Uint8Array.of(1, 2, 3);
    await expectRefused(bench, await incoming(key, { read: () => other }), 'signature_invalid');
    await expectRefused(bench, await incoming(key, { body: '', read: () => other }), 'signature_invalid');
    expect(bench.asked).not.toContain('replay_store');
    expect(Buffer.from((await bench.verifier.verify(await incoming(key, { body: 'héllo' }))).body).toString()).toBe('héllo');
  });
});

describe('the price of a refusal', () => {
  it('is one signature check for an unknown key, as for a bad signature', async () => {
    const real = nodePrimitives();
    let checks = 0;
    const bench = openBench({ primitives: { ...real, verify: (...given) => ((checks += 1), real.verify(...given)) } });
    const key = await bench.enrolledKey();
    const stranger = await openBench().enrolledKey();
    const checksOf = async (request: Incoming): Promise<number> => {
      checks = 0;
      await bench.verifier.verify(request).catch(() => {});
      return checks;
    };
    expect(await checksOf(await incoming(stranger))).toBe(1);
    expect(await checksOf(forged(await incoming(key)))).toBe(1);
    expect(await checksOf(await incoming(key))).toBe(1);
    expect(await checksOf(withHeader(await incoming(key), 'x-keyguard-signature', 'x'))).toBe(0);
  });

  it('is told only when the check is done, also where it takes its time', async () => {
    let isDone = false;
    const verify = async (): Promise<boolean> => {
      await nextTurn();
      isDone = true;
      return true;
    };
    const bench = openBench({ primitives: { ...nodePrimitives(), verify } });
    await expectRefused(bench, await incoming(await openBench().enrolledKey()), 'signature_invalid');
    expect(isDone).toBe(true);
  });

  it('never includes another seam before the proof but the registry', async () => {
    const bench = openBench();
    await expectRefused(bench, forged(await incoming(await bench.enrolledKey())), 'signature_invalid');
    expect(bench.asked).toEqual(['device_registry']);
  });
});

describe('primitives', () => {
  it.each<[string, unknown]>([
    ['1', 1],
    ['"yes"', 'yes'],
    ['an object', {}],
    ['a promise of 1', Promise.resolve(1)],
    ['undefined', undefined],
  ])('that answer %s have not verified', async (_name, answer) => {
    const bench = openBench({ primitives: { ...nodePrimitives(), verify: () => answer as boolean } });
    const request = await incoming(await bench.enrolledKey());
    await expectRefused(bench, request, 'signature_invalid');
    expect(request.reads.count).toBe(0);
  });

  const fail = (): never => {
    throw new Error('no engine');
  };
  it.each<[string, Partial<Primitives>]>([
    ['verify throws', { verify: fail }],
    ['verify rejects', { verify: async () => fail() }],
    ['sha256 throws', { sha256: fail }],
    ['sha256 rejects', { sha256: async () => fail() }],
  ])('are an outage, and reported, when %s', async (_name, broken) => {
    const bench = openBench({ primitives: { ...nodePrimitives(), ...broken } });
    await expectRefused(bench, await incoming(await bench.enrolledKey()), 'store_unavailable');
    expect(bench.rejections[0]!.error).toMatchObject({ name: 'UnavailableError' });
    expect(bench.asked).not.toContain('replay_store');
  });

  it('import a key once, of at most 10,000 that are kept', { timeout: 60_000 }, async () => {
    const real = nodePrimitives();
    const devices = new Map<string, PublicJwk>();
    while (devices.size < 10_001) {
      const publicKey: PublicJwk = { crv: 'P-256', kty: 'EC', x: randomBytes(32).toString('base64url'), y: randomBytes(32).toString('base64url') };
      devices.set(await thumbprint(publicKey, real), publicKey);
    }
    const imported: string[] = [];
    const bench = openBench({
      // Points that are none, and signatures that nobody made: what is counted is the keys.
      primitives: { sha256: real.sha256, verify: () => true, importPublicKey: ({ x }) => (imported.push(x), { x } as never) },
      replayStore: { claim: () => true },
      deviceLimiter: limiter(ALLOWED, ALLOWED),
      registry: {
        ...openBench().registry,
        findByKeyId: (keyId) => ({
          deviceId: keyId,
          ownerId: 'owner',
          projectId: null,
          keyId,
          publicKey: devices.get(keyId)!,
          keyState: 'current',
          keyRetiresAtMs: null,
          status: 'active',
          label: null,
          requestsPerMinute: null,
          ipAllowlist: null,
          allowedModels: null,
        }),
      },
      ipLimiter: limiter(ALLOWED, ALLOWED),
    });
    const template = await incoming(await openBench().enrolledKey());
    const call = (keyId: string): Promise<unknown> => bench.verifier.verify(withHeader(template, 'x-keyguard-key-id', keyId));
    imported.length = 0; // what construction imported
    const keyIds = [...devices.keys()];
    for (const keyId of keyIds) await call(keyId);
    expect(imported).toHaveLength(10_001);
    await call(keyIds.at(-1)!);
    await call(keyIds[1]!);
    expect(imported).toHaveLength(10_001);
    await call(keyIds[0]!);
    expect(imported.slice(10_001)).toEqual([devices.get(keyIds[0]!)!.x]);
  });
});

describe('the device', () => {
  it('may call from the addresses of its own allowlist only', async () => {
    const { bench, key } = await benchOf({ ipAllowlist: ['10.0.0.0/8', '2001:db8::/32'] });
    for (const ip of ['192.0.2.1', '::ffff:192.0.2.1', '2001:db9::1', null]) {
      const request = await incoming(key, { ip });
      await expectRefused(bench, request, 'ip_not_allowed');
      expect(bench.rejections.at(-1)!.deviceId).not.toBeNull();
    }
    for (const ip of ['10.1.2.3', '::ffff:10.1.2.3', '2001:db8::1']) await bench.verifier.verify(await incoming(key, { ip }));
    // Told to the holder of the key only.
    await expectRefused(bench, forged(await incoming(key)), 'signature_invalid');
    expect(bench.asked.filter((name) => name === 'replay_store')).toHaveLength(3);
  });

  it('with an allowlist that cannot be read may not call at all', async () => {
    const { bench, key } = await benchOf({ ipAllowlist: ['10.0.0.0/8', 'nonsense'] });
    await expectRefused(bench, await incoming(key, { ip: '10.1.2.3' }), 'store_unavailable');
  });

  it.each([
    ['less than', 2, 1000],
    ['more than', 3, 1],
  ])('has a limit of its own, %s the policy’s', async (_name, own, ofPolicy) => {
    const { bench, key } = await benchOf({ requestsPerMinute: own }, { policy: { authorities: [AUTHORITY], requestsPerMinute: ofPolicy } });
    for (let i = 0; i < own; i += 1) expect((await bench.verifier.verify(await incoming(key))).rate.limit).toBe(own);
    await expectRefused(bench, await incoming(key), 'rate_limited');
  });

  it('is looked at again after the claim: what it became meanwhile counts', async () => {
    const changes: [string, (bench: Bench, deviceId: string) => void, string][] = [
      ['revoked', (bench, deviceId) => void bench.registry.transition(deviceId, 'revoke'), 'device_revoked'],
      ['suspended', (bench, deviceId) => void bench.registry.transition(deviceId, 'suspend'), 'device_suspended'],
    ];
    for (const [name, change, code] of changes) {
      const bench: Bench = openBench({
        replayStore: {
          claim: () => {
            change(bench, bench.registry.list()[0]!.deviceId);
            return true;
          },
        },
      });
      await expectRefused(bench, await incoming(await bench.enrolledKey()), code);
      expect({ name, asked: bench.asked }).toEqual({ name, asked: ['device_registry', 'replay_store', 'device_registry'] });
    }
  });

  it('that the registry gives for another key than was asked for is an outage, whoever signed', async () => {
    const devices = openBench();
    const [key, other] = [await devices.enrolledKey(), await devices.enrolledKey()];
    const bench = openBench({ registry: { ...devices.registry, findByKeyId: () => devices.registry.findByKeyId(other.keyId) } });
    // Signed by the key of the device that is given, under another id: each id would have nonces of its own.
    const request = await incoming({ keyId: key.keyId, publicKey: other.publicKey, sign: (data) => other.sign(data) });
    await expectRefused(bench, request, 'store_unavailable');
    expect(bench.rejections[0]!.error).toMatchObject({ seam: 'device_registry' });
    await bench.verifier.verify(await incoming(other));
  });

  it('is waited for also where the promise of it is of another maker', async () => {
    const devices = openBench();
    const key = await devices.enrolledKey();
    // Of another realm: it has the verb, and not the class.
    const later = runInNewContext('async (value) => value') as <T>(value: T) => T;
    expect(later(true)).not.toBeInstanceOf(Promise);
    const bench = openBench({
      registry: { ...devices.registry, findByKeyId: (keyId) => later(devices.registry.findByKeyId(keyId)) },
      replayStore: { claim: () => later(true) },
      deviceLimiter: limiter(later(ALLOWED), later(ALLOWED)),
      ipLimiter: limiter(later(ALLOWED), later(ALLOWED)),
    });
    expect((await bench.verifier.verify(await incoming(key))).keyId).toBe(key.keyId);
  });

  it('that vanished after the claim is unknown, and its new state is the one that is handed on', async () => {
    const devices = openBench();
    const key = await devices.enrolledKey();
    const device = devices.registry.findByKeyId(key.keyId) as Device;
    const answers: (Device | null)[] = [device, null, device, { ...device, label: 'renamed' }];
    const bench = openBench({ registry: { ...devices.registry, findByKeyId: () => answers.shift()! } });
    await expectRefused(bench, await incoming(key), 'signature_invalid');
    expect((await bench.verifier.verify(await incoming(key))).device.label).toBe('renamed');
  });
});

describe('limiters', () => {
  it('that allow at the look and refuse at the debit have refused', async () => {
    const bench = openBench({ deviceLimiter: limiter(ALLOWED, REFUSED) });
    await expectRefused(bench, await incoming(await bench.enrolledKey()), 'rate_limited');
    expect(bench.rejections[0]!.error).toMatchObject({ retryAfterMs: 60_000 });
  });

  it('that refuse at the look are not debited, and no nonce is claimed', async () => {
    let debits = 0;
    const counted: RateLimiter = { peek: () => REFUSED, consume: () => ((debits += 1), ALLOWED) };
    const bench = openBench({ deviceLimiter: counted });
    await expectRefused(bench, await incoming(await bench.enrolledKey()), 'rate_limited');
    expect({ debits, asked: bench.asked }).toEqual({ debits: 0, asked: ['device_registry'] });
  });

  it('count a key that was replaced by itself, body and calls: whoever kept it uses up nothing of the device', async () => {
    const retired: Partial<Device>[] = [{ keyState: 'retired' }, { keyState: 'retiring', keyRetiresAtMs: NOW_MS }, { keyState: 'retiring', keyRetiresAtMs: null }];
    for (const members of retired) {
      const devices = openBench();
      const [old, key] = [await devices.enrolledKey(), await devices.enrolledKey()];
      const { deviceId } = devices.registry.findByKeyId(key.keyId) as Device;
      const holders: string[] = [];
      const bench = openBench({
        policy: { authorities: [AUTHORITY], requestsPerMinute: 3 },
        registry: {
          ...devices.registry,
          findByKeyId: (keyId) => ({ ...(devices.registry.findByKeyId(keyId) as Device), deviceId, ...(keyId === old.keyId && members) }),
        },
      });
      const read = (_policy: unknown, holder: string): Bytes => (holders.push(holder), utf8('{}'));
      const status = async (): Promise<unknown> => bench.verifier.verify(await incoming(old, { read }), { insecureAnyStatus: true });
      for (let i = 0; i < 3; i += 1) await status();
      // It has a limit all the same.
      await expect(status()).rejects.toMatchObject({ code: 'rate_limited' });
      await expectRefused(bench, await incoming(old, { read }), 'signature_invalid');
      expect(new Set(holders)).toEqual(new Set([`key:${old.keyId}`]));
      for (let i = 0; i < 3; i += 1) await bench.verifier.verify(await incoming(key));
    }
  });

  it('count a key that is retiring still as the device', async () => {
    const { bench, key } = await benchOf({ keyState: 'retiring', keyRetiresAtMs: NOW_MS + 1 }, { policy: { authorities: [AUTHORITY], requestsPerMinute: 1 } });
    await bench.verifier.verify(await incoming(key), { insecureAnyStatus: true });
    await expectRefused(bench, await incoming(key), 'rate_limited');
  });

  const nonsense: [string, unknown][] = [
    ['undefined', undefined],
    ['null', null],
    ['{}', {}],
    ['allowed: 1', { ...ALLOWED, allowed: 1 }],
    ["allowed: 'true'", { ...ALLOWED, allowed: 'true' }],
    ['true', true],
    ['a promise of {}', Promise.resolve({})],
  ];
  it.each(nonsense)('that answer %s have given no decision', async (_name, answer) => {
    for (const broken of [
      { ipLimiter: limiter(ALLOWED, answer) },
      { deviceLimiter: limiter(answer, ALLOWED) },
      { deviceLimiter: limiter(ALLOWED, answer) },
    ]) {
      const bench = openBench(broken);
      await expectRefused(bench, await incoming(await bench.enrolledKey()), 'store_unavailable');
    }
  });

  it('count an IPv6 caller by its /64, before anything is proven', async () => {
    const counted = memoryRateLimiter({ perMinute: 2 });
    const bench = openBench({ ipLimiter: counted });
    const key = await bench.enrolledKey();
    for (const ip of ['2001:db8:1:2::1', '2001:db8:1:2:ffff::2']) await expectRefused(bench, forged(await incoming(key, { ip })), 'signature_invalid');
    await expectRefused(bench, await incoming(key, { ip: '2001:db8:1:2:3:4:5:6' }), 'rate_limited');
    await bench.verifier.verify(await incoming(key, { ip: '2001:db8:1:3::1' }));
  });
});

describe('the nonce', () => {
  it('is claimed for its key and its time, and kept for exactly 360 s from then', async () => {
    const claims: unknown[] = [];
    const bench = openBench({ replayStore: { claim: (...claim) => (claims.push(claim), true) } });
    const key = await bench.enrolledKey();
    for (const nowMs of [NOW_MS, NOW_MS - 300_000, NOW_MS + 60_000]) {
      const { nonce } = await bench.verifier.verify(await incoming(key, { nowMs }));
      expect(claims.pop()).toEqual([key.keyId, nonce, nowMs / 1000, nowMs + 360_000]);
    }
  });
});

describe('the time', () => {
  const LATE_MS = NOW_MS + 301_000;

  it('is read again before the claim: nothing is claimed for what became old meanwhile', async () => {
    for (const during of ['the look-up', 'the body'] as const) {
      const devices = openBench();
      const key = await devices.enrolledKey();
      const late = async <T>(answer: T): Promise<T> => {
        await nextTurn();
        bench.time.nowMs = LATE_MS;
        return answer;
      };
      const find = devices.registry.findByKeyId;
      const bench: Bench = openBench({
        registry: { ...devices.registry, findByKeyId: (keyId) => (during === 'the look-up' ? late(find(keyId) as Device) : find(keyId)) },
      });
      const request = await incoming(key, during === 'the body' ? { read: () => late(Uint8Array.from(Buffer.from('{}'))) } : {});
      await expectRefused(bench, request, 'timestamp_out_of_window');
      expect({ during, asked: bench.asked }).toEqual({ during, asked: ['device_registry'] });
    }
  });

  it('is read again at the end', async () => {
    for (const during of ['claim', 'debit'] as const) {
      const bench: Bench = openBench({
        replayStore: { claim: () => (during === 'claim' && (bench.time.nowMs = LATE_MS), true) },
        deviceLimiter: { peek: () => ALLOWED, consume: () => (during === 'debit' && (bench.time.nowMs = LATE_MS), ALLOWED) },
      });
      await expectRefused(bench, await incoming(await bench.enrolledKey()), 'timestamp_out_of_window');
      expect(bench.asked).toContain('replay_store');
    }
  });
});

describe('what is told of refusals', () => {
  it('is told, and awaited, before the answer leaves', async () => {
    let told: () => void = () => {};
    const pending = new Promise<void>((resolve) => (told = resolve));
    const bench = openBench({ onRejected: () => pending });
    let answered = false;
    const answer = bench.verifier.verify(forged(await incoming(await bench.enrolledKey()))).catch((error: unknown) => ((answered = true), error));
    await sleep(20);
    expect(answered).toBe(false);
    told();
    expect(await answer).toMatchObject({ code: 'signature_invalid' });
  });

  it.each<[string, () => Promise<void>]>([
    ['fails', () => Promise.reject(new Error('disk full'))],
    ['throws', () => { throw new Error('disk full'); }],
    ['hangs', () => new Promise(() => {})],
  ])('is an outage when the log %s', async (_name, onRejected) => {
    const bench = openBench({ onRejected, policy: { authorities: [AUTHORITY], seamTimeoutMs: 50 } });
    await expect(bench.verifier.verify(forged(await incoming(await bench.enrolledKey())))).rejects.toMatchObject({
      name: 'UnavailableError',
      code: 'store_unavailable',
      seam: 'audit',
    });
  });

  it('includes outages', async () => {
    const bench = openBench({ replayStore: { claim: () => Promise.reject(new Error('down')) } });
    await expectRefused(bench, await incoming(await bench.enrolledKey()), 'store_unavailable');
    expect(bench.rejections[0]!.error).toMatchObject({ name: 'UnavailableError', seam: 'replay_store', cause: { message: 'down' } });
  });

  it('names a device only once its key is proven, and no key before the head is read', async () => {
    const bench = openBench();
    const key = await bench.enrolledKey();
    const { deviceId } = bench.registry.findByKeyId(key.keyId) as Device;
    await expectRefused(bench, withHeader(await incoming(key), 'x-keyguard-nonce', 'x'), 'malformed_request');
    await expectRefused(bench, forged(await incoming(key)), 'signature_invalid');
    await expectRefused(bench, await incoming(key, { read: () => Uint8Array.of(1) }), 'signature_invalid');
    const request = await incoming(key, { ip: '192.0.2.9', target: '/path?secret=1' });
    await bench.verifier.verify(request);
    await expectRefused(bench, request, 'replay_detected');
    expect(bench.rejections.map((event) => [event.error.code, event.keyId, event.deviceId])).toEqual([
      ['malformed_request', null, null],
      ['signature_invalid', key.keyId, null],
      ['signature_invalid', key.keyId, null],
      ['replay_detected', key.keyId, deviceId],
    ]);
    expect(bench.rejections.at(-1)).toMatchObject({ ip: '192.0.2.9', method: 'POST', path: '/path' });
  });

  it('keeps of a stranger’s method and path no more than the log should hold', async () => {
    const bench = openBench();
    const request = await incoming(await bench.enrolledKey());
    await expectRefused(bench, { ...request, method: 'X'.repeat(60_000), target: `/${'a'.repeat(60_000)}?secret` }, 'malformed_request');
    expect(bench.rejections[0]).toMatchObject({ method: 'X'.repeat(16), path: `/${'a'.repeat(1023)}` });
  });
});

it('works with the memory store at its own pace: the stricter allowance for the future counts', async () => {
  const bench = openBench({ replayStore: memoryReplayStore({ clock: { nowMs: () => NOW_MS }, startedAtMs: 0 }) });
  const key = await bench.enrolledKey();
  await bench.verifier.verify(await incoming(key, { nowMs: NOW_MS + 2000 }));
  await expectRefused(bench, await incoming(key, { nowMs: NOW_MS + 3000 }), 'timestamp_out_of_window');
});
