/**
 * What the rotation of a device key must reject, by the numbers of the protocol (N73 to N78): through the routes of a door, over
 * real sockets, in one carriage. Every refusal is asserted together with that the device still has the key that it had.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { fromBase64, fromBase64Url, toBase64, toBase64Url, utf8 } from '@keyguard/core/bytes';
import { rotationProofText, type Carriage, type RotationProofParts } from '@keyguard/core/canonical';
import type { Bytes, Device, SigningKey } from '@keyguard/core/seams';
import { webCryptoRandom } from '@keyguard/core/system';
import { generateRotationCode, hashRotationCode, type SelfRotationEvent } from '@keyguard/server-verifier';
import { AUTHORITY, exchange, NOW_MS, send, toBytes, valueOf, wireThrough, withHeader, type Door, type SignOptions, type WireAnswer, type WireRequest, type Workbench } from './wire.ts';

const random = webCryptoRandom();

interface Rotating extends Omit<SignOptions, 'random'> {
  /** The key that signs the request, where it is not the one that is replaced. */
  readonly signer?: SigningKey;
  /** The key that makes the proof, where it is not the new one. */
  readonly prover?: SigningKey;
  /** What the proof speaks of, where it is not this request. */
  readonly proven?: Partial<RotationProofParts>;
}

/** The attacks on the rotation of device keys through one door, in one carriage, over real sockets: every device keeps its key. */
export function rotationAttacks<App>(door: Door<App>, carriage: Carriage): void {
  const { openWorkbench, signed } = wireThrough(door, carriage);
  let bench: Workbench;
  beforeAll(async () => {
    bench = await openWorkbench();
  });
  afterAll(() => bench.close());

  /** A request that replaces `old` by `key`, complete and right but for what is bent. */
  async function rotation(old: SigningKey, key: SigningKey, members: Record<string, unknown> = {}, options: Rotating = {}): Promise<WireRequest> {
    const { signer = old, prover = key, proven, ...signing } = options;
    const nonce = random.bytes(16);
    const timestamp = String(Math.floor((signing.nowMs ?? NOW_MS) / 1000));
    const text = rotationProofText({ oldKeyId: old.keyId, newKeyId: key.keyId, timestamp, nonce: toBase64Url(nonce), ...proven });
    const body = JSON.stringify({ jwk: key.publicKey, proof: toBase64(await prover.sign(utf8(text))), ...members });
    return signed(signer, { target: '/api/keyguard/rotate', body, tag: 'keyguard-rotate-v1', random: { bytes: () => nonce }, ...signing });
  }

  async function rotate(old: SigningKey, key: SigningKey, members?: Record<string, unknown>, options?: Rotating, on: Workbench = bench): Promise<WireAnswer> {
    return send(on, await rotation(old, key, members, options));
  }

  async function statusOf(key: SigningKey, on: Workbench = bench): Promise<WireAnswer> {
    return send(on, await signed(key, { method: 'GET', target: '/api/keyguard/status', headers: [], body: '', nowMs: on.time.nowMs }));
  }

  const deviceOf = (key: SigningKey, on: Workbench = bench): Device => on.registry.findByKeyId(key.keyId) as Device;

  /** Sends, and demands the refusal and that every device has the key that it had. */
  async function expectRefused(request: WireRequest, status: number, code: string, on: Workbench = bench): Promise<void> {
    const before = on.registry.list();
    const answer = await send(on, request);
    expect({ status: answer.status, code: answer.code }).toEqual({ status, code });
    expect(answer.headers.get('cache-control')).toBe('no-store');
    expect(on.registry.list()).toEqual(before);
  }

  /** An enrolled key, a new one that is nobody's, and a code with which the one replaces the other. */
  async function pair(on: Workbench = bench): Promise<{ old: SigningKey; key: SigningKey; code: string }> {
    const old = await on.enrolledKey();
    return { old, key: await on.newKey(), code: on.newRotationCode(old) };
  }

  it('replaces the key of a device: both call during the overlap, and the status says which is which', async () => {
    const own = await openWorkbench();
    const { old, key, code } = await pair(own);
    const { deviceId } = deviceOf(old, own);
    const answer = await rotate(old, key, { code }, {}, own);
    expect(answer.status).toBe(200);
    expect(JSON.parse(answer.body)).toEqual({ device_id: deviceId, key_id: key.keyId, status: 'active' });
    for (const [one, state] of [[old, 'retiring'], [key, 'current']] as const) {
      expect((await send(own, await signed(one))).status).toBe(200);
      expect(JSON.parse((await statusOf(one, own)).body)).toEqual({
        device_id: deviceId, key_id: one.keyId, status: 'active', key_state: state, server_time: NOW_MS / 1000,
      });
    }
    await own.close();
  });

  it('a code is read as people write it', async () => {
    const { old, key, code } = await pair();
    const sloppy = code.toLowerCase().replaceAll('-', ' ').replaceAll('0', 'o').replaceAll('1', 'l');
    expect((await rotate(old, key, { code: sloppy })).status).toBe(200);
  });

  describe('the proof of the new key', () => {
    it('N73 missing, malformed, or by another key', async () => {
      const { old, key, code } = await pair();
      const [other, stranger] = [await bench.enrolledKey(), await bench.newKey()];
      const proof = toBase64(await key.sign(utf8('x')));
      for (const odd of [undefined, null, '', 7, [proof], proof.slice(0, 86), `${proof}=`, `${proof.slice(0, 85)}B==`, toBase64Url(fromBase64(proof)!), toBase64(new Uint8Array(63) as Bytes), toBase64(new Uint8Array(65) as Bytes)]) {
        await expectRefused(await rotation(old, key, { code, proof: odd }), 400, 'malformed_request');
      }
      for (const prover of [old, other, stranger]) await expectRefused(await rotation(old, key, { code }, { prover }), 401, 'signature_invalid');
      await expectRefused(await rotation(old, key, { code, proof }), 401, 'signature_invalid');
      // Somebody else's key, with a proof that its holder made for a rotation of their own.
      const foreign = await rotation(other, stranger, { code }, { signer: old });
      await expectRefused(withHeader(foreign, 'x-keyguard-key-id', other.keyId), 401, 'signature_invalid');
      expect((await rotate(old, key, { code })).status).toBe(200);
    });

    it('N74 swapped ids, another time, another nonce, another text', async () => {
      const { old, key, code } = await pair();
      const other = await bench.enrolledKey();
      const bent: Partial<RotationProofParts>[] = [
        { oldKeyId: key.keyId, newKeyId: old.keyId },
        { oldKeyId: other.keyId },
        { newKeyId: other.keyId },
        { timestamp: String(NOW_MS / 1000 + 1) },
        { timestamp: String(NOW_MS / 1000 - 1) },
        { nonce: toBase64Url(random.bytes(16)) },
        { nonce: '' },
      ];
      for (const proven of bent) await expectRefused(await rotation(old, key, { code }, { proven }), 401, 'signature_invalid');
      // The proof of one request, in another that is right but for it.
      const first = JSON.parse(Buffer.from((await rotation(old, key)).body).toString()) as { proof: string };
      await expectRefused(await rotation(old, key, { code, proof: first.proof }), 401, 'signature_invalid');
      // An ordinary signature by the new key is no proof, whatever it was made for.
      for (const tag of ['keyguard-v1', 'keyguard-enroll-v1', 'keyguard-rotate-v1'] as const) {
        const request = await signed(key, { target: '/api/keyguard/rotate', tag });
        const proof = valueOf(request, 'x-keyguard-signature');
        await expectRefused(await rotation(old, key, { code, proof }), 401, 'signature_invalid');
      }
      expect((await rotate(old, key, { code })).status).toBe(200);
    });

    it('a proof is no request signature either', async () => {
      const { old, key, code } = await pair();
      const request = await rotation(old, key, { code });
      const { proof } = JSON.parse(Buffer.from(request.body).toString()) as { proof: string };
      const forged = withHeader(withHeader(request, 'x-keyguard-signature', proof), 'x-keyguard-key-id', key.keyId);
      await expectRefused(forged, 401, 'signature_invalid');
      await expectRefused(withHeader(request, 'x-keyguard-signature', proof), 401, 'signature_invalid');
    });

    it('each bit of it, and the key that it is for', async () => {
      const { old, key, code } = await pair();
      const other = await bench.newKey();
      await expectRefused(await rotation(old, key, { code, jwk: other.publicKey }), 401, 'signature_invalid');
      for (let bit = 0; bit < 512; bit += 37) {
        const request = await rotation(old, key, { code });
        const body = JSON.parse(Buffer.from(request.body).toString()) as { proof: string };
        const bytes = fromBase64(body.proof)!;
        bytes[bit >> 3]! ^= 1 << (bit & 7);
        // The request around it is signed again, with the nonce that the proof speaks of.
        const nonce = fromBase64Url(valueOf(request, 'x-keyguard-nonce'))!;
        const bent = await signed(old, { target: '/api/keyguard/rotate', tag: 'keyguard-rotate-v1', random: { bytes: () => nonce }, body: JSON.stringify({ ...body, proof: toBase64(bytes) }) });
        await expectRefused(bent, 401, 'signature_invalid');
      }
    });
  });

  describe('the new key', () => {
    it('N75 the old one itself: no code is used up', async () => {
      const { old, key, code } = await pair();
      await expectRefused(await rotation(old, old, { code }), 409, 'key_exists');
      expect((await rotate(old, key, { code })).status).toBe(200);
    });

    it('N76 that of another device, or one that was replaced or revoked: no code is used up', async () => {
      const { old, key, code } = await pair();
      const [other, revoked, replaced] = [await bench.enrolledKey(), await bench.enrolledKey(), await bench.enrolledKey()];
      bench.registry.transition(deviceOf(revoked).deviceId, 'revoke');
      expect((await rotate(replaced, await bench.newKey(), { code: bench.newRotationCode(replaced) })).status).toBe(200);
      for (const known of [other, revoked, replaced]) {
        await expectRefused(await rotation(old, known, { code }), 409, 'key_exists');
        await expectRefused(await rotation(old, known), 409, 'key_exists');
      }
      // Without the other device's private key there is no proof, and so not even that answer.
      await expectRefused(await rotation(old, other, { code }, { prover: old }), 401, 'signature_invalid');
      expect((await rotate(old, key, { code })).status).toBe(200);
    });

    it('in another spelling, off the curve, of another curve, or with private members', async () => {
      const { old, key, code } = await pair();
      const { x } = key.publicKey;
      const jwks: unknown[] = [
        undefined, null, 42, [key.publicKey], JSON.stringify(key.publicKey),
        { ...key.publicKey, x: `${x}=` },
        { ...key.publicKey, x: toBase64Url(Uint8Array.of(0, ...fromBase64Url(x)!)) },
        { ...key.publicKey, x: toBase64Url(new Uint8Array(32)), y: toBase64Url(new Uint8Array(32)) },
        { ...key.publicKey, y: x },
        { ...key.publicKey, crv: 'P-384' },
        { ...key.publicKey, d: x },
        { ...key.publicKey, alg: 'ES256' },
      ];
      for (const jwk of jwks) await expectRefused(await rotation(old, key, { code, jwk }), 400, 'malformed_request');
      const twice = `{"jwk":${JSON.stringify(key.publicKey)},"jwk":${JSON.stringify((await bench.newKey()).publicKey)},"proof":"${toBase64(await key.sign(utf8('x')))}"}`;
      await expectRefused(await rotation(old, key, {}, { body: twice }), 401, 'signature_invalid');
    });

    it('never enrolls by the way of the one that it replaced', async () => {
      const { old, key, code } = await pair();
      expect((await rotate(old, key, { code })).status).toBe(200);
      const body = JSON.stringify({ jwk: old.publicKey, code: bench.newCode() });
      await expectRefused(await signed(old, { target: '/api/keyguard/enroll', body, tag: 'keyguard-enroll-v1' }), 409, 'key_exists');
    });
  });

  describe('the old key', () => {
    it('N77 after the overlap: neither rotates nor calls; its status says retired', async () => {
      const own = await openWorkbench();
      const { old, key, code } = await pair(own);
      const first = await rotation(old, key, { code });
      expect((await send(own, first)).status).toBe(200);
      own.time.nowMs = NOW_MS + 59_999;
      expect((await send(own, await signed(old, { nowMs: own.time.nowMs }))).status).toBe(200);
      own.time.nowMs = NOW_MS + 60_000;
      const late = { nowMs: own.time.nowMs };
      await expectRefused(await signed(old, late), 401, 'signature_invalid', own);
      await expectRefused(await rotation(old, key, { code }, late), 401, 'signature_invalid', own);
      await expectRefused(await rotation(old, await own.newKey(), { code: own.newRotationCode(key) }, late), 401, 'signature_invalid', own);
      expect(own.rejections.slice(-3).map(({ error }) => (error as { detail?: string }).detail)).toEqual(['retired key', 'retired key', 'retired key']);
      expect(JSON.parse((await statusOf(old, own)).body)).toMatchObject({ key_state: 'retired', status: 'active' });
      expect((await send(own, await signed(key, late))).status).toBe(200);
      expect(own.passed.map(({ keyId }) => keyId)).toEqual([old.keyId, key.keyId]);
      await own.close();
    });

    it('that is retiring repeats its rotation, signed anew, and makes no other', async () => {
      const { old, key, code } = await pair();
      expect((await rotate(old, key, { code })).status).toBe(200);
      const repeat = await rotate(old, key, { code });
      expect({ status: repeat.status, ...(JSON.parse(repeat.body) as object) }).toMatchObject({ status: 'active', key_id: key.keyId });
      const fresh = bench.newRotationCode(key);
      await expectRefused(await rotation(old, await bench.newKey(), { code: fresh }), 403, 'rotation_rejected');
      await expectRefused(await rotation(old, await bench.enrolledKey(), { code: fresh }), 403, 'rotation_rejected');
      // The new key rotates on, with the code that was refused to the old one; then the first rotation is no repeat any more.
      expect((await rotate(key, await bench.newKey(), { code: fresh })).status).toBe(200);
      await expectRefused(await rotation(old, key, { code }), 403, 'rotation_rejected');
    });

    it('a rotation that is replayed is refused, also when the first one was', async () => {
      const { old, key, code } = await pair();
      const request = await rotation(old, key, { code });
      expect((await send(bench, request)).status).toBe(200);
      await expectRefused(request, 401, 'replay_detected');
      const bad = await pair();
      const rejected = await rotation(bad.old, bad.key, { code: generateRotationCode(random) });
      await expectRefused(rejected, 403, 'rotation_rejected');
      await expectRefused(rejected, 401, 'replay_detected');
    });

    it('of 50 copies of one request at the same time, one is done', async () => {
      const { old, key, code } = await pair();
      const bytes = toBytes(await rotation(old, key, { code }));
      const answers = await Promise.all(Array.from({ length: 50 }, () => exchange(bench.port, bytes)));
      expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
      expect(answers.filter((answer) => answer.code === 'replay_detected')).toHaveLength(49);
    });

    it('a refused proof uses up neither nonce nor code', async () => {
      const { old, key, code } = await pair();
      const request = await rotation(old, key, { code });
      const nonce = fromBase64Url(valueOf(request, 'x-keyguard-nonce'))!;
      const body = JSON.parse(Buffer.from(request.body).toString()) as object;
      const bad = await signed(old, { target: '/api/keyguard/rotate', tag: 'keyguard-rotate-v1', random: { bytes: () => nonce }, body: JSON.stringify({ ...body, jwk: (await bench.newKey()).publicKey }) });
      await expectRefused(bad, 401, 'signature_invalid');
      expect((await send(bench, request)).status).toBe(200);
    });
  });

  describe('the signature of the request', () => {
    it('N78 ordinary, or for enrollment: not for this route; and one for this route is for no other', async () => {
      const { old, key, code } = await pair();
      for (const tag of ['keyguard-v1', 'keyguard-enroll-v1'] as const) await expectRefused(await rotation(old, key, { code }, { tag }), 401, 'signature_invalid');
      await expectRefused(await rotation(old, key, { code }, { target: '/proxy/openai/v1/models' }), 401, 'signature_invalid');
      await expectRefused(await rotation(old, key, { code }, { target: '/api/keyguard/enroll' }), 400, 'malformed_request');
      const status = await signed(old, { method: 'GET', target: '/api/keyguard/status', headers: [], body: '', tag: 'keyguard-rotate-v1' });
      await expectRefused(status, 401, 'signature_invalid');
      expect(bench.passed).toEqual([]);
      expect((await rotate(old, key, { code })).status).toBe(200);
    });

    it('none, by the new key, by a stranger, or by another device', async () => {
      const { old, key, code } = await pair();
      const unsigned: WireRequest = {
        method: 'POST',
        target: '/api/keyguard/rotate',
        headers: [['host', AUTHORITY], ['content-type', 'application/json']],
        body: (await rotation(old, key, { code })).body,
      };
      await expectRefused(unsigned, 400, 'malformed_request');
      for (const signer of [key, await bench.newKey()]) await expectRefused(await rotation(old, key, { code }, { signer }), 401, 'signature_invalid');
      const other = await bench.enrolledKey();
      // Signed by another device with its own key id: the proof is not for that one.
      await expectRefused(await rotation(old, key, { code }, { signer: other }), 401, 'signature_invalid');
      await expectRefused(withHeader(await rotation(old, key, { code }, { signer: other }), 'x-keyguard-key-id', old.keyId), 401, 'signature_invalid');
      expect((await rotate(old, key, { code })).status).toBe(200);
    });

    it('the body must be what was signed, and what it is said to be', async () => {
      const { old, key, code } = await pair();
      const request = await rotation(old, key, { code });
      await expectRefused({ ...request, body: utf8(Buffer.from(request.body).toString().replace('"proof"', ' "proof"')) }, 401, 'signature_invalid');
      const jwk = JSON.stringify(key.publicKey);
      const proof = toBase64(await key.sign(utf8('x')));
      for (const body of ['', '{', 'null', '[]', '"x"', `{"jwk":${jwk}}`, `{"proof":"${proof}"}`, `{"jwk":${jwk},"proof":"${proof}","label":"x"}`, `{"jwk":${jwk},"proof":"${proof}","owner_id":"me"}`, `{"jwk":${jwk},"proof":"${proof}","code":7}`]) {
        await expectRefused(await rotation(old, key, {}, { body }), 400, 'malformed_request');
      }
      await expectRefused(await rotation(old, key, { code: 'x'.repeat(5000) }), 413, 'body_too_large');
      await expectRefused(await rotation(old, key, { code: 'x'.repeat(65) }), 400, 'malformed_request');
    });
  });

  describe('codes', () => {
    it('none, unknown, malformed, expired, used, replaced by another, another device\u2019s, one for enrollment: one answer', async () => {
      const { old, key, code } = await pair();
      const other = await pair();
      const used = bench.newRotationCode(other.old);
      expect((await rotate(other.old, other.key, { code: used })).status).toBe(200);
      const foreign = bench.newRotationCode(other.key);
      const bodies = new Set<string>();
      const codes = [undefined, null, '', 'x', '0'.repeat(26), 'U'.repeat(26), generateRotationCode(random), hashRotationCode(code), used, foreign, bench.newCode(), other.code];
      for (const one of codes) {
        const answer = await rotate(old, key, { code: one });
        expect(answer).toMatchObject({ status: 403, code: 'rotation_rejected' });
        bodies.add(answer.body);
      }
      bench.newRotationCode(old, { expiresAtMs: NOW_MS });
      bodies.add((await rotate(old, key, { code })).body);
      expect(bodies.size).toBe(1);
      expect(deviceOf(old).keyState).toBe('current');
      expect((await rotate(other.key, await bench.newKey(), { code: foreign })).status).toBe(200);
    });

    it('50 parallel uses of one code, each for a key of its own, give one new key', async () => {
      const { old, code } = await pair();
      const requests = await Promise.all(Array.from({ length: 50 }, async () => toBytes(await rotation(old, await bench.newKey(), { code }))));
      const before = bench.registry.list().length;
      const answers = await Promise.all(requests.map((bytes) => exchange(bench.port, bytes)));
      expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
      expect(answers.filter((answer) => answer.code === 'rotation_rejected')).toHaveLength(49);
      expect(bench.registry.list()).toHaveLength(before);
    });

    it('tries are counted by device, and only those that it signed', async () => {
      const limited = await openWorkbench({ rotationsPerMinute: 3 });
      const { old, key } = await pair(limited);
      const stranger = await limited.newKey();
      for (let i = 0; i < 5; i += 1) await expectRefused(withHeader(await rotation(stranger, key), 'x-keyguard-key-id', old.keyId), 401, 'signature_invalid', limited);
      for (let i = 0; i < 3; i += 1) await expectRefused(await rotation(old, key, { code: generateRotationCode(random) }), 403, 'rotation_rejected', limited);
      await expectRefused(await rotation(old, key, { code: limited.newRotationCode(old) }), 429, 'rate_limited', limited);
      const other = await pair(limited);
      expect((await rotate(other.old, other.key, { code: other.code }, {}, limited)).status).toBe(200);
      await limited.close();
    });
  });

  describe('without a code', () => {
    it('only where the operator allows it, and then it is told of, with the key that was replaced', async () => {
      const events: SelfRotationEvent[] = [];
      const own = await openWorkbench({ allowSelfRotation: true, onSelfRotation: (event) => void events.push(event) });
      const { old, key, code } = await pair(own);
      await expectRefused(await rotation(old, key, { code: generateRotationCode(random) }), 403, 'rotation_rejected', own);
      expect(events).toEqual([]);
      const device = deviceOf(old, own);
      expect((await rotate(old, key, {}, {}, own)).status).toBe(200);
      expect((await rotate(old, key, {}, {}, own)).status).toBe(200);
      const event = { newKeyId: key.keyId, ip: '127.0.0.1' };
      expect(events).toEqual([{ ...event, device, isRepeat: false }, { ...event, device: deviceOf(old, own), isRepeat: true }]);
      // With a code there is nothing to tell.
      expect((await rotate(key, await own.newKey(), { code }, {}, own)).status).toBe(200);
      expect(events).toHaveLength(2);
      await own.close();
    });

    it('that nobody can be told of is an outage, and replaces nothing', async () => {
      let isBroken = true;
      const told: boolean[] = [];
      const own = await openWorkbench({
        allowSelfRotation: true,
        onSelfRotation: async ({ isRepeat }) => {
          if (isBroken) throw new Error('nobody there');
          told.push(isRepeat);
        },
      });
      const { old, key } = await pair(own);
      await expectRefused(await rotation(old, key), 503, 'store_unavailable', own);
      isBroken = false;
      expect((await rotate(old, key, {}, {}, own)).status).toBe(200);
      expect(told).toEqual([false]);
      await own.close();
    });
  });

  describe('the device', () => {
    it.each([['suspend', 'device_suspended'], ['revoke', 'device_revoked']] as const)('%s: its keys rotate no more, repeats included', async (move, refusal) => {
      const { old, key, code } = await pair();
      const done = await pair();
      expect((await rotate(done.old, done.key, { code: done.code })).status).toBe(200);
      for (const { deviceId } of [deviceOf(old), deviceOf(done.key)]) bench.registry.transition(deviceId, move);
      await expectRefused(await rotation(old, key, { code }), 403, refusal);
      await expectRefused(await rotation(done.old, done.key, { code: done.code }), 403, refusal);
      await expectRefused(await rotation(done.key, key, { code: bench.newRotationCode(done.key) }), 403, refusal);
      // Not told to whoever cannot sign.
      await expectRefused(withHeader(await rotation(key, key, { code }), 'x-keyguard-key-id', old.keyId), 401, 'signature_invalid');
    });

    it('every refusal is reported, with the device once its key is proven', async () => {
      const own = await openWorkbench();
      const { old, key } = await pair(own);
      await expectRefused(await rotation(await own.newKey(), key), 401, 'signature_invalid', own);
      await expectRefused(await rotation(old, key), 403, 'rotation_rejected', own);
      const { deviceId } = deviceOf(old, own);
      expect(own.rejections).toMatchObject([
        { deviceId: null, path: '/api/keyguard/rotate', error: { code: 'signature_invalid' } },
        { deviceId, keyId: old.keyId, path: '/api/keyguard/rotate', error: { code: 'rotation_rejected' } },
      ]);
      await own.close();
    });
  });
}
