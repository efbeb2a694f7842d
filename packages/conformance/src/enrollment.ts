/**
 * What enrollment must reject, by the numbers of the protocol (N66 to N72): through the routes of a door, over real
 * sockets, in one carriage.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { toBase64Url, fromBase64Url, utf8 } from '@keyguard/core/bytes';
import type { Carriage } from '@keyguard/core/canonical';
import type { SigningKey } from '@keyguard/core/seams';
import { hashEnrollmentCode, generateEnrollmentCode } from '@keyguard/server-verifier';
import { webCryptoRandom } from '@keyguard/core/system';
import { AUTHORITY, exchange, NOW_MS, send, toBytes, wireThrough, withHeader, type Door, type SignOptions, type WireAnswer, type WireRequest, type Workbench } from './wire.ts';

interface Enrolling extends SignOptions {
  /** The key that signs, where it is not the one that is enrolled. */
  readonly signer?: SigningKey;
}

/** The attacks on enrollment through one door, in one carriage, over real sockets: no device may come of any of them. */
export function enrollmentAttacks<App>(door: Door<App>, carriage: Carriage): void {
  const { openWorkbench, signed } = wireThrough(door, carriage);
  let bench: Workbench;
  beforeAll(async () => {
    bench = await openWorkbench();
  });
  afterAll(() => bench.close());

  function enrollment(key: SigningKey, members: Record<string, unknown> = {}, { signer = key, ...options }: Enrolling = {}): Promise<WireRequest> {
    const body = JSON.stringify({ jwk: key.publicKey, ...members });
    return signed(signer, { target: '/api/keyguard/enroll', body, tag: 'keyguard-enroll-v1', ...options });
  }

  async function enroll(key: SigningKey, members?: Record<string, unknown>, options?: Enrolling): Promise<WireAnswer> {
    return send(bench, await enrollment(key, members, options));
  }

  /** Sends, and demands the refusal and that no device came of it. */
  async function expectRefused(request: WireRequest, status: number, code: string, on: Workbench = bench): Promise<void> {
    const before = on.registry.list().length;
    const answer = await send(on, request);
    expect({ status: answer.status, code: answer.code }).toEqual({ status, code });
    expect(on.registry.list().length).toBe(before);
  }

  it('enrolls with a valid code; the device then asks its status and calls', async () => {
    const key = await bench.newKey();
    const answer = await enroll(key, { code: bench.newCode(), label: 'Büro-Laptop' });
    expect(answer.status).toBe(201);
    const { device_id: deviceId, key_id: keyId, status } = JSON.parse(answer.body) as Record<string, string>;
    expect({ keyId, status }).toEqual({ keyId: key.keyId, status: 'active' });
    const state = await send(bench, await signed(key, { method: 'GET', target: '/api/keyguard/status', headers: [], body: '' }));
    expect(JSON.parse(state.body)).toEqual({ device_id: deviceId, key_id: keyId, status: 'active', key_state: 'current', server_time: NOW_MS / 1000 });
    expect((await send(bench, await signed(key))).status).toBe(200);
  });

  it('a code is read as people write it', async () => {
    const code = bench.newCode();
    const sloppy = code.toLowerCase().replaceAll('-', ' ').replaceAll('0', 'o').replaceAll('1', 'l');
    expect((await enroll(await bench.newKey(), { code: sloppy })).status).toBe(201);
  });

  it('a code that asks for approval gives a pending device, which may ask its status and nothing else', async () => {
    const key = await bench.newKey();
    expect(JSON.parse((await enroll(key, { code: bench.newCode({ autoApprove: false }) })).body)).toMatchObject({ status: 'pending' });
    expect(await send(bench, await signed(key))).toMatchObject({ status: 403, code: 'device_pending' });
    const state = await send(bench, await signed(key, { method: 'GET', target: '/api/keyguard/status', headers: [], body: '' }));
    expect(JSON.parse(state.body)).toMatchObject({ status: 'pending' });
  });

  describe('proof of possession', () => {
    it('N66 none, or by another key', async () => {
      const [key, other] = [await bench.newKey(), await bench.newKey()];
      const code = bench.newCode();
      const unsigned: WireRequest = {
        method: 'POST',
        target: '/api/keyguard/enroll',
        headers: [['host', AUTHORITY], ['content-type', 'application/json']],
        body: utf8(JSON.stringify({ jwk: key.publicKey, code })),
      };
      await expectRefused(unsigned, 400, 'malformed_request');
      await expectRefused(await enrollment(key, { code }, { signer: other }), 401, 'signature_invalid');
      await expectRefused(withHeader(await enrollment(key, { code }, { signer: other }), 'x-keyguard-key-id', key.keyId), 401, 'signature_invalid');
      await expectRefused(await enrollment(key, { code }, { tag: 'keyguard-v1' }), 401, 'signature_invalid');
      const enrolled = await bench.enrolledKey();
      await expectRefused(await enrollment(key, { code }, { signer: enrolled }), 401, 'signature_invalid');
      expect((await enroll(key, { code })).status).toBe(201);
    });

    it('N67 a key id that is not the thumbprint', async () => {
      const [key, other] = [await bench.newKey(), await bench.newKey()];
      const disguised: SigningKey = { ...key, keyId: other.keyId, sign: (data) => key.sign(data) };
      await expectRefused(await enrollment(disguised, { code: bench.newCode() }), 401, 'signature_invalid');
    });

    it('N68 aliases, points off the curve, other curves, private members', async () => {
      const key = await bench.newKey();
      const { x, y } = key.publicKey;
      const zero = toBase64Url(new Uint8Array(32));
      const jwks: unknown[] = [
        { ...key.publicKey, x: `${x}=` },
        { ...key.publicKey, x: toBase64Url(Uint8Array.of(0, ...fromBase64Url(x)!)) },
        { ...key.publicKey, y: toBase64Url(Uint8Array.of(...fromBase64Url(y)!, 0)) },
        { ...key.publicKey, y: '' },
        { kty: 'EC', crv: 'P-256', x },
        { ...key.publicKey, x: zero, y: zero },
        { ...key.publicKey, y: x },
        { ...key.publicKey, crv: 'P-384' },
        { ...key.publicKey, crv: 'p-256' },
        { ...key.publicKey, d: x },
        { ...key.publicKey, alg: 'ES256' },
        { ...key.publicKey, key_ops: ['verify'] },
        { ...key.publicKey, ext: true },
        [key.publicKey],
        JSON.stringify(key.publicKey),
        null,
        undefined,
        42,
      ];
      for (const jwk of jwks) await expectRefused(await enrollment(key, { jwk, code: bench.newCode() }), 400, 'malformed_request');
      // JSON with the member twice: the last one counts, and it is not the key that signed.
      const other = await bench.newKey();
      const text = `{"jwk":${JSON.stringify(key.publicKey)},"jwk":${JSON.stringify(other.publicKey)},"code":"${bench.newCode()}"}`;
      await expectRefused(await enrollment(key, {}, { body: text }), 401, 'signature_invalid');
    });

    it('the body must be what it is said to be', async () => {
      const key = await bench.newKey();
      const jwk = JSON.stringify(key.publicKey);
      for (const body of ['', '{', 'null', '[]', '"x"', `{"jwk":${jwk},"owner_id":"me"}`, `{"jwk":${jwk},"status":"active"}`, `{"jwk":${jwk},"code":7}`, '\xff']) {
        await expectRefused(await enrollment(key, {}, { body }), 400, 'malformed_request');
      }
      await expectRefused(await enrollment(key, {}, { body: Uint8Array.of(0x7b, 0xff, 0x7d) }), 400, 'malformed_request');
      await expectRefused(await enrollment(key, { label: 'x'.repeat(5000) }), 413, 'body_too_large');
    });

    it.each(['', 'x'.repeat(65), 'a\u0000b', 'a\nb', 'user\u202Egnp.exe', 'a\u2066b', 'e\u0301', 'a\ud800', '\u200b'])('a label that is not acceptable: %j', async (label) => {
      await expectRefused(await enrollment(await bench.newKey(), { code: bench.newCode(), label }), 400, 'malformed_request');
    });

    it('64 characters are counted as people count them', async () => {
      expect((await enroll(await bench.newKey(), { code: bench.newCode(), label: '💻'.repeat(64) })).status).toBe(201);
    });

    it.each(['short', 'x'.repeat(43), `${'A'.repeat(42)}+`, `${'A'.repeat(43)}=`])('a fingerprint that is none: %j', async (fingerprint) => {
      await expectRefused(await enrollment(await bench.newKey(), { code: bench.newCode(), fingerprint }), 400, 'malformed_request');
    });
  });

  describe('codes', () => {
    it('N69 none, unknown, malformed, expired, used: one answer', async () => {
      const used = bench.newCode();
      expect((await enroll(await bench.newKey(), { code: used })).status).toBe(201);
      const bodies = new Set<string>();
      const codes = [undefined, null, '', 'x', '0'.repeat(26), 'U'.repeat(26), generateEnrollmentCode(webCryptoRandom()), bench.newCode({ expiresAtMs: NOW_MS }), used, hashEnrollmentCode(used)];
      for (const code of codes) {
        const answer = await enroll(await bench.newKey(), { code });
        expect(answer).toMatchObject({ status: 403, code: 'enrollment_rejected' });
        bodies.add(answer.body);
      }
      expect(bodies.size).toBe(1);
    });

    it('N69 a code of another deployment is unknown here', async () => {
      const other = await openWorkbench();
      await expectRefused(await enrollment(await bench.newKey(), { code: other.newCode() }), 403, 'enrollment_rejected');
      await other.close();
    });

    it('N69 50 parallel uses of one code give one device', async () => {
      const code = bench.newCode();
      const requests = await Promise.all(Array.from({ length: 50 }, async () => toBytes(await enrollment(await bench.newKey(), { code }))));
      const before = bench.registry.list().length;
      const answers = await Promise.all(requests.map((bytes) => exchange(bench.port, bytes)));
      expect(answers.filter(({ status }) => status === 201)).toHaveLength(1);
      expect(answers.filter(({ code: refusal }) => refusal === 'enrollment_rejected')).toHaveLength(49);
      expect(bench.registry.list().length).toBe(before + 1);
    });

    it('N69 a code for three devices serves three', async () => {
      const code = bench.newCode({ maxUses: 3 });
      const statuses: number[] = [];
      for (let i = 0; i < 5; i += 1) statuses.push((await enroll(await bench.newKey(), { code })).status);
      expect(statuses).toEqual([201, 201, 201, 403, 403]);
    });

    it('tries are counted by address', async () => {
      const limited = await openWorkbench({ enrollmentsPerMinute: 3 });
      for (let i = 0; i < 3; i += 1) await expectRefused(await enrollment(await limited.newKey(), { code: 'guess' }), 403, 'enrollment_rejected', limited);
      await expectRefused(await enrollment(await limited.newKey(), { code: limited.newCode() }), 429, 'rate_limited', limited);
      await limited.close();
    });
  });

  describe('once', () => {
    it('N70 replayed', async () => {
      const key = await bench.newKey();
      const request = await enrollment(key, { code: bench.newCode({ maxUses: 5 }) });
      expect((await send(bench, request)).status).toBe(201);
      await expectRefused(request, 401, 'replay_detected');
    });

    it('N71 a thumbprint that is known or revoked, with whatever code', async () => {
      const key = await bench.newKey();
      const first = await enroll(key, { code: bench.newCode() });
      await expectRefused(await enrollment(key, { code: bench.newCode() }), 409, 'key_exists');
      await expectRefused(await enrollment(key), 409, 'key_exists');
      bench.registry.transition((JSON.parse(first.body) as { device_id: string }).device_id, 'revoke');
      const code = bench.newCode();
      await expectRefused(await enrollment(key, { code }), 409, 'key_exists');
      // The refusal did not use the code up.
      expect((await enroll(await bench.newKey(), { code })).status).toBe(201);
    });

    it('N72 the same fingerprint with a new key is a new device', async () => {
      const fingerprint = 'A'.repeat(43);
      const [first, second] = [await enroll(await bench.newKey(), { code: bench.newCode(), fingerprint }), await enroll(await bench.newKey(), { code: bench.newCode(), fingerprint })];
      expect([first.status, second.status]).toEqual([201, 201]);
      expect((JSON.parse(first.body) as { device_id: string }).device_id).not.toBe((JSON.parse(second.body) as { device_id: string }).device_id);
    });
  });

  it('tells the time to whoever asks', async () => {
    const answer = await exchange(bench.port, Buffer.from(`GET /api/keyguard/time HTTP/1.1\r\nhost: ${AUTHORITY}\r\nconnection: close\r\n\r\n`));
    expect(JSON.parse(answer.body)).toEqual({ server_time: NOW_MS / 1000 });
  });
}
