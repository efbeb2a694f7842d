/** The recipe of rotation, where a socket would hide what is asked of whom; N73 to N78 over sockets are in the conformance package. */
import { describe, expect, it } from 'vitest';
import { toBase64, utf8 } from '@keyguard/core/bytes';
import { rotationProofText } from '@keyguard/core/canonical';
import { memoryDeviceRegistry, memoryKeyStore } from '@keyguard/core/memory';
import type { Bytes, Device, DeviceRegistry, KeyRotationOutcome, KeyRotationRequest, SigningKey } from '@keyguard/core/seams';
import { createRotation, nodePrimitives, type RotationOptions, type SelfRotationEvent } from '@keyguard/server-verifier';
import { ALLOWED, AUTHORITY, forged, incoming, limiter, NOW_MS, openBench, REFUSED, withHeader, type Bench, type Incoming, type IncomingOptions } from './bench.ts';

const CODE = '7K3QF-0MZ8T-4V2XN-9RBCD-HE6JP-S';
const CODE_HASH = 'zTv4hg_T5TX5ebP2QvWtcH_WRuSrZ82AUzoLOIP9qJw';

const newKey = (): Promise<SigningKey> => memoryKeyStore().getOrCreate('device');

/** A request that replaces `old` by `key`, complete and right but for `members` and `options`. */
async function rotating(old: SigningKey, key: SigningKey, members: Record<string, unknown> = {}, options: IncomingOptions = {}): Promise<Incoming> {
  const nonce = crypto.getRandomValues(new Uint8Array(16));
  const timestamp = String((options.nowMs ?? NOW_MS) / 1000);
  const text = rotationProofText({ oldKeyId: old.keyId, newKeyId: key.keyId, timestamp, nonce: Buffer.from(nonce).toString('base64url') });
  const body = JSON.stringify({ jwk: key.publicKey, proof: toBase64(await key.sign(utf8(text))), code: CODE, ...members });
  return incoming(old, { target: '/api/keyguard/rotate', body, tag: 'keyguard-rotate-v1', random: { bytes: () => nonce }, ...options });
}

interface Open {
  readonly bench: Bench;
  readonly old: SigningKey;
  readonly key: SigningKey;
  /** What the registry was asked for. */
  readonly asked: KeyRotationRequest[];
}

/** A registry of one device that rotates whatever it is asked to, and what it was asked. */
async function openRegistry(options: Parameters<typeof openBench>[0] = {}, answer?: (request: KeyRotationRequest) => unknown): Promise<Open> {
  const asked: KeyRotationRequest[] = [];
  const devices = openBench();
  const old = await devices.enrolledKey();
  const registry: DeviceRegistry = {
    ...devices.registry,
    rotate: (request) => {
      asked.push(request);
      const { keyId, publicKey, oldKeyId } = request;
      const device = { ...(devices.registry.findByKeyId(oldKeyId) as Device), keyId, publicKey };
      return (answer === undefined ? { outcome: 'rotated', device } : answer(request)) as KeyRotationOutcome;
    },
  };
  return { bench: openBench({ registry, ...options }), old, key: await newKey(), asked };
}

async function expectRefused({ bench, asked }: Open, request: Incoming, code: string): Promise<void> {
  const before = asked.length;
  await expect(bench.rotation.rotate(request)).rejects.toMatchObject({ code });
  expect(asked).toHaveLength(before);
  expect(bench.rejections.at(-1)?.error.code).toBe(code);
}

it('hands the registry what was proven, what the policy lets, and the time', async () => {
  const { bench, old, key, asked } = await openRegistry();
  const device = await bench.rotation.rotate(await rotating(old, key));
  expect(device).toMatchObject({ keyId: key.keyId, publicKey: key.publicKey, status: 'active' });
  const request = { oldKeyId: old.keyId, keyId: key.keyId, publicKey: key.publicKey, codeHash: CODE_HASH, allowWithoutCode: false, overlapMs: 60_000, nowMs: NOW_MS };
  expect(asked).toEqual([request]);
  // The time of the verifier, and not that which the request says.
  const late = await openRegistry();
  await late.bench.rotation.rotate(await rotating(late.old, late.key, {}, { nowMs: NOW_MS - 10_000 }));
  expect(late.asked).toMatchObject([{ nowMs: NOW_MS }]);
  const own = await openRegistry({ overlapMs: 0, allowSelfRotation: true, onSelfRotation: () => {} });
  await own.bench.rotation.rotate(await rotating(own.old, own.key, { code: null }));
  expect(own.asked).toMatchObject([{ codeHash: null, allowWithoutCode: true, overlapMs: 0 }]);
});

it('asks in this order: the device, the replay store, the device again, and only then for the rotation', async () => {
  const { bench, old, key } = await openRegistry();
  await bench.rotation.rotate(await rotating(old, key));
  expect(bench.asked).toEqual(['device_registry', 'replay_store', 'device_registry', 'rotate']);
});

describe('what is not proven', () => {
  it('reads no body and asks for nothing: malformed, old, unsigned', async () => {
    const open = await openRegistry();
    const requests: [Incoming, string][] = [
      [withHeader(await rotating(open.old, open.key), 'x-keyguard-nonce', 'x'), 'malformed_request'],
      [await rotating(open.old, open.key, {}, { nowMs: NOW_MS - 301_000 }), 'timestamp_out_of_window'],
      [forged(await rotating(open.old, open.key)), 'signature_invalid'],
      [await rotating(open.key, open.old), 'signature_invalid'],
      [await rotating(open.old, open.key, {}, { tag: 'keyguard-v1' }), 'signature_invalid'],
    ];
    for (const [request, code] of requests) {
      await expectRefused(open, request, code);
      expect(request.reads.count).toBe(0);
    }
    expect(open.bench.asked).not.toContain('replay_store');
  });

  it('an unknown key costs a signature check like any other', async () => {
    let checks = 0;
    const real = nodePrimitives();
    const open = await openRegistry({ primitives: { ...real, verify: (...given) => ((checks += 1), real.verify(...given)) } });
    await expectRefused(open, forged(await rotating(open.old, open.key)), 'signature_invalid');
    expect(checks).toBe(1);
    await expectRefused(open, await rotating(open.key, open.old), 'signature_invalid');
    expect(checks).toBe(2);
  });

  it('the proof must be exactly true, and a refused one claims no nonce', async () => {
    for (const answer of [1, 'yes', {}, false]) {
      const real = nodePrimitives();
      let checks = 0;
      // The request is right, and the proof is what the odd answer is about.
      const open = await openRegistry({ primitives: { ...real, verify: (...given) => ((checks += 1) === 1 ? real.verify(...given) : (answer as boolean)) } });
      await expectRefused(open, await rotating(open.old, open.key), 'signature_invalid');
      expect(open.bench.asked).toEqual(['device_registry']);
      expect(open.bench.rejections).toMatchObject([{ keyId: open.old.keyId, error: { detail: 'proof of the new key' } }]);
    }
  });

  it('the body must be the one whose hash was signed, also where the proof in it is good', async () => {
    const open = await openRegistry();
    const [request, other] = [await rotating(open.old, open.key), await rotating(open.old, open.key, { code: null })];
    const swapped = { ...request, body: other.body };
    await expectRefused(open, swapped, 'signature_invalid');
    expect(open.bench.asked).toEqual(['device_registry']);
    expect(open.bench.rejections).toMatchObject([{ keyId: open.old.keyId, deviceId: null, error: { detail: 'body' } }]);
  });

  it('a proof has 64 bytes, and a body no other members', async () => {
    const open = await openRegistry();
    for (const members of [{ proof: Buffer.alloc(65, 1).toString('base64') }, { proof: Buffer.alloc(66, 1).toString('base64') }, { label: 'x' }, { fingerprint: null }]) {
      await expectRefused(open, await rotating(open.old, open.key, members), 'malformed_request');
    }
    expect(open.bench.rejections.at(-1)).toMatchObject({ keyId: open.old.keyId, deviceId: expect.any(String) as string });
  });

  it('the body is read once, to 4,096 bytes, on the account of the device', async () => {
    const asked: [number, string][] = [];
    const { bench, old, key } = await openRegistry();
    const request = await rotating(old, key);
    const body = await request.body(bench.verifier.policy, '');
    const read: Incoming = { ...request, body: ({ maxBodyBytes }, holder) => (asked.push([maxBodyBytes, holder]), body) };
    const { deviceId } = await bench.rotation.rotate(read);
    expect(asked).toEqual([[4096, `device:${deviceId}`]]);
  });
});

it.each(['', 'x', 'U'.repeat(26), '0'.repeat(25), `${CODE}\u00a0`])('a code that is none (%j) never reaches a registry, not even where none is needed', async (code) => {
  const open = await openRegistry({ allowSelfRotation: true, onSelfRotation: () => {} });
  await expectRefused(open, await rotating(open.old, open.key, { code }), 'rotation_rejected');
  await open.bench.rotation.rotate(await rotating(open.old, open.key, { code: null }));
  expect(open.asked.map(({ codeHash }) => codeHash)).toEqual([null]);
});

describe('the waits take time, and what holds at their end decides', () => {
  it('a device that was suspended, revoked or moved to another key while the nonce was claimed', async () => {
    const changes: [Partial<Device> | null, string][] = [
      [{ status: 'suspended' }, 'device_suspended'],
      [{ status: 'revoked' }, 'device_revoked'],
      [{ keyState: 'retired' }, 'signature_invalid'],
      [{ keyState: 'retiring', keyRetiresAtMs: NOW_MS }, 'signature_invalid'],
      [{ ipAllowlist: ['198.51.100.0/24'] }, 'ip_not_allowed'],
      [null, 'signature_invalid'],
    ];
    for (const [change, code] of changes) {
      const devices = memoryDeviceRegistry();
      let isClaimed = false;
      const asked: KeyRotationRequest[] = [];
      const bench = openBench({
        replayStore: { claim: () => (isClaimed = true) },
        registry: {
          ...devices,
          findByKeyId: (keyId) => {
            const device = devices.findByKeyId(keyId) as Device;
            return isClaimed ? change && { ...device, ...change } : device;
          },
          rotate: (request) => (asked.push(request), { outcome: 'rejected' }),
        },
      });
      const [old, key] = [await newKey(), await newKey()];
      devices.addCode({ codeHash: old.keyId, ownerId: 'owner', expiresAtMs: NOW_MS + 1 });
      devices.enroll({ keyId: old.keyId, publicKey: old.publicKey, codeHash: old.keyId, label: null, fingerprint: null, nowMs: NOW_MS });
      await expectRefused({ bench, old, key, asked }, await rotating(old, key), code);
      expect(bench.asked).toEqual(['device_registry', 'replay_store', 'device_registry']);
    }
  });

  it('a device that may not call claims no nonce', async () => {
    const bench = openBench();
    const [old, key] = [await bench.enrolledKey(), await newKey()];
    bench.registry.transition(bench.registry.list()[0]!.deviceId, 'suspend');
    await expect(bench.rotation.rotate(await rotating(old, key))).rejects.toMatchObject({ code: 'device_suspended' });
    expect(bench.asked).toEqual(['device_registry']);
  });

  it('the time is read again before the claim, and before the key is replaced', async () => {
    for (const during of ['the body', 'the claim'] as const) {
      const time = { nowMs: NOW_MS };
      const late = <T>(answer: T): T => {
        time.nowMs = NOW_MS + 301_000;
        return answer;
      };
      const open = await openRegistry({
        clock: { nowMs: () => time.nowMs },
        replayStore: { claim: () => (during === 'the claim' ? late(true) : true) },
      });
      const request = await rotating(open.old, open.key);
      const body = (await request.body(open.bench.verifier.policy, '')) as Bytes;
      await expectRefused(open, during === 'the body' ? { ...request, body: () => late(body) } : request, 'timestamp_out_of_window');
      expect(open.bench.asked.includes('replay_store')).toBe(during === 'the claim');
    }
  });
});

describe('what fails is closed', () => {
  it('an outcome that is none, or a device of another key', async () => {
    const { device } = { device: { deviceId: 'd', keyId: 'another', status: 'active' } as Device };
    for (const answer of [undefined, null, true, 'rotated', {}, { outcome: 'enrolled', device }, { outcome: 'rotated' }, { outcome: 'rotated', device }, { outcome: 'already_rotated', device }]) {
      const { bench, old, key } = await openRegistry({}, () => answer);
      await expect(bench.rotation.rotate(await rotating(old, key))).rejects.toMatchObject({ name: 'UnavailableError', seam: 'device_registry' });
    }
  });

  it('a registry that throws or hangs', async () => {
    for (const answer of [() => Promise.reject(new Error('down')), () => new Promise(() => {}), (): never => { throw new Error('down'); }]) {
      const { bench, old, key } = await openRegistry({ policy: { authorities: [AUTHORITY], seamTimeoutMs: 50 } }, answer);
      await expect(bench.rotation.rotate(await rotating(old, key))).rejects.toMatchObject({ name: 'UnavailableError', seam: 'device_registry' });
      expect(bench.rejections).toMatchObject([{ error: { code: 'store_unavailable' } }]);
    }
  });

  it('a limiter that gives no decision, or refuses, at the look or at the debit', async () => {
    for (const [answer, code] of [[undefined, 'store_unavailable'], [{}, 'store_unavailable'], [{ ...ALLOWED, allowed: 1 }, 'store_unavailable'], [REFUSED, 'rate_limited']] as const) {
      const look = await openRegistry({ rotationLimiter: limiter(answer, ALLOWED) });
      await expectRefused(look, await rotating(look.old, look.key), code);
      expect(look.bench.asked).not.toContain('replay_store');
      const debit = await openRegistry({ rotationLimiter: limiter(ALLOWED, answer) });
      await expectRefused(debit, await rotating(debit.old, debit.key), code);
      expect(debit.bench.asked).toContain('replay_store');
    }
  });
});

describe('a rotation without a code', () => {
  it('is told of before the registry is asked, also where that then hangs or refuses', async () => {
    for (const answer of [() => ({ outcome: 'rejected' }), () => new Promise(() => {}), undefined]) {
      const events: (SelfRotationEvent & { asked: number })[] = [];
      const open: Open = await openRegistry(
        {
          policy: { authorities: [AUTHORITY], seamTimeoutMs: 50 },
          allowSelfRotation: true,
          onSelfRotation: (event) => void events.push({ ...event, asked: open.asked.length }),
        },
        answer,
      );
      await open.bench.rotation.rotate(await rotating(open.old, open.key, { code: null })).catch(() => {});
      expect(open.asked).toHaveLength(1);
      expect(events).toMatchObject([{ asked: 0, device: { keyId: open.old.keyId }, newKeyId: open.key.keyId, ip: '192.0.2.1', isRepeat: false }]);
    }
  });

  it('by a key that was replaced is told of as what it is: a repeat, or nothing that is done', async () => {
    const events: SelfRotationEvent[] = [];
    const devices = openBench();
    const [old, key] = [await devices.enrolledKey(), await newKey()];
    const registry: DeviceRegistry = {
      ...devices.registry,
      findByKeyId: (keyId) => ({ ...(devices.registry.findByKeyId(keyId) as Device), keyState: 'retiring', keyRetiresAtMs: NOW_MS + 1 }),
    };
    const bench = openBench({ registry, allowSelfRotation: true, onSelfRotation: (event) => void events.push(event) });
    await bench.rotation.rotate(await rotating(old, key, { code: null }));
    expect(events).toMatchObject([{ device: { keyId: old.keyId }, newKeyId: key.keyId, isRepeat: true }]);
  });

  it('is not done where nobody heard of it: the listener threw, or was not done in time', async () => {
    for (const onSelfRotation of [(): never => { throw new Error('down'); }, () => Promise.reject(new Error('down')), () => new Promise<void>(() => {})]) {
      const open = await openRegistry({ policy: { authorities: [AUTHORITY], seamTimeoutMs: 50 }, allowSelfRotation: true, onSelfRotation });
      await expectRefused(open, await rotating(open.old, open.key, { code: null }), 'store_unavailable');
    }
  });

  it('is what is told of, and not one with a code', async () => {
    const open = await openRegistry({ allowSelfRotation: true, onSelfRotation: () => Promise.reject(new Error('told')) });
    await open.bench.rotation.rotate(await rotating(open.old, open.key));
    expect(open.asked).toMatchObject([{ codeHash: CODE_HASH, allowWithoutCode: true }]);
  });
});

it('tries are counted by device, whatever its key', async () => {
  const counted: string[] = [];
  const bench = openBench({ rotationLimiter: { peek: () => ALLOWED, consume: (key) => (counted.push(key), ALLOWED) }, allowSelfRotation: true, onSelfRotation: () => {} });
  const keys = [await bench.enrolledKey(), await newKey(), await newKey()] as const;
  const [{ deviceId }] = bench.registry.list() as [Device];
  await bench.rotation.rotate(await rotating(keys[0], keys[1], { code: null }));
  await bench.rotation.rotate(await rotating(keys[1], keys[2], { code: null }));
  expect(counted).toEqual([deviceId, deviceId]);
});

describe('createRotation', () => {
  const { findByKeyId, enroll, ...rest } = memoryDeviceRegistry();
  const right: RotationOptions = { policy: { authorities: [AUTHORITY] }, registry: { findByKeyId, enroll, ...rest }, replayStore: { claim: () => true } };
  const wrong: [string, object][] = [
    ['a registry that does not rotate', { registry: { findByKeyId, enroll } }],
    ...[-1, 60_001, 0.5, Number.NaN, Infinity, '60000', null].map((overlapMs): [string, object] => [`an overlap of ${String(overlapMs)}`, { overlapMs }]),
    ['rotations without a code of which nobody is told', { allowSelfRotation: true }],
    ['a listener that is none', { allowSelfRotation: true, onSelfRotation: 'log' }],
    ['a permission that is no boolean', { allowSelfRotation: 'no', onSelfRotation: () => {} }],
  ];
  it.each(wrong)('refuses %s', (_, bent) => {
    expect(() => createRotation({ ...right, ...bent } as RotationOptions)).toThrow(expect.objectContaining({ name: 'UsageError', code: 'invalid_option' }));
  });

  it('takes the ends of the overlap', () => {
    for (const overlapMs of [0, 60_000]) expect(Object.isFrozen(createRotation({ ...right, overlapMs }))).toBe(true);
  });

  it('demands a code where a listener is there and nothing else was said', async () => {
    const open = await openRegistry({ onSelfRotation: () => {} });
    await open.bench.rotation.rotate(await rotating(open.old, open.key, { code: null }));
    expect(open.asked).toMatchObject([{ codeHash: null, allowWithoutCode: false }]);
  });
});
