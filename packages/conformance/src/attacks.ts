/**
 * What a verifier must reject, by the numbers of the protocol (N1 to N65): through a door, over real sockets, as bytes, in one
 * carriage. N26 is tested beside the primitives of a server, enrollment (N66 and on) in its own file. Every case asserts the answer AND that nothing reached the
 * handler.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { fromBase64, toBase64, utf8 } from '@keyguard/core/bytes';
import { COVERED_HEADERS, signatureBase, type Carriage } from '@keyguard/core/canonical';
import { memoryReplayStore } from '@keyguard/core/memory';
import type { Bytes, ReplayStore, SigningKey } from '@keyguard/core/seams';
import { memoryRateLimiter, nodePrimitives } from '@keyguard/server-verifier';
import {
  addHeader,
  AUTHORITY,
  exchange,
  NOW_MS,
  send,
  toBytes,
  valueOf,
  wireThrough,
  withHeader,
  withoutHeader,
  type Door,
  type Headers,
  type WireAnswer,
  type WireRequest,
  type Workbench,
} from './wire.ts';

const N = BigInt('0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551');
const SIGNATURE = 'x-keyguard-signature';

/** The attacks N1 to N65 of the protocol through one door, in one carriage, over real sockets: nothing may pass but what was signed. */
export function attacks<App>(door: Door<App>, carriage: Carriage): void {
  const { carriers, openWorkbench, signed } = wireThrough(door, carriage);
  const otherWire = wireThrough(door, carriage === 'headers' ? 'rfc9421' : 'headers');
  // One carriage lists what it covers, so that a header which came or went no longer fits the list; the other one lists nothing.
  const [unlistedStatus, unlistedCode] = carriage === 'headers' ? ([401, 'signature_invalid'] as const) : ([400, 'malformed_request'] as const);

  // What came twice is refused by its number where the wire is seen; where a runtime joined it, as something that was not signed.
  const [doubledStatus, doubledCode] = door.seesWire ? ([400, 'malformed_request'] as const) : ([401, 'signature_invalid'] as const);

  let bench: Workbench;
  let key: SigningKey;

  beforeAll(async () => {
    bench = await openWorkbench();
    key = await bench.enrolledKey();
  });
  afterAll(() => bench.close());

  /** Sends, and demands the refusal and that nothing passed. */
  async function expectRefused(request: WireRequest | Buffer, status: number, code: string | null, on: Workbench = bench): Promise<void> {
    const before = on.passed.length;
    const answer = Buffer.isBuffer(request) ? await exchange(on.port, request) : await send(on, request);
    expect({ status: answer.status, code: answer.code }).toEqual({ status, code });
    // A refusal that a cache kept would refuse the next one too, and tell the time of another day.
    if (status !== 500) expect(answer.headers.get('cache-control')).toBe('no-store');
    expect(on.passed.length).toBe(before);
  }

  async function expectAccepted(request: WireRequest, on: Workbench = bench): Promise<void> {
    const before = on.passed.length;
    const answer = await send(on, request);
    expect({ status: answer.status, code: answer.code }).toEqual({ status: 200, code: null });
    expect(on.passed.length).toBe(before + 1);
  }

  /** Sends, and demands that nothing passed, whoever refused it: the runtime, its router or the door. */
  async function expectNothingPasses(request: WireRequest | Buffer, on: Workbench = bench): Promise<void> {
    const before = on.passed.length;
    const { status } = Buffer.isBuffer(request) ? await exchange(on.port, request) : await send(on, request);
    expect([0, 400, 401, 404]).toContain(status);
    expect(on.passed.length).toBe(before);
  }

  function scalars(request: WireRequest): { r: bigint; s: bigint } {
    const bytes = Buffer.from(fromBase64(valueOf(request, SIGNATURE))!);
    return { r: BigInt(`0x${bytes.subarray(0, 32).toString('hex')}`), s: BigInt(`0x${bytes.subarray(32).toString('hex')}`) };
  }

  function signature(r: bigint, s: bigint): string {
    return Buffer.from(r.toString(16).padStart(64, '0') + s.toString(16).padStart(64, '0'), 'hex').toString('base64');
  }

  it('accepts what is right: the control of this suite', async () => {
    await expectAccepted(await signed(key));
    await expectAccepted(await signed(key, { method: 'GET', target: '/proxy/openai/v1/models', headers: [], body: '' }));
    expect(bench.passed.at(-1)).toMatchObject({ method: 'GET', path: '/proxy/openai/v1/models', query: '', authority: AUTHORITY });
    expect(Object.isFrozen(bench.passed.at(-1))).toBe(true);
  });

  describe('headers', () => {
    it.each(carriers)('N1 %s missing', async (name) => {
      await expectRefused(withoutHeader(await signed(key), name), 400, 'malformed_request');
    });

    it.each(carriers)('N2 %s twice, on two lines or joined', async (name) => {
      const request = await signed(key);
      const joinedCode = name === 'x-keyguard-version' ? 'unsupported_version' : 'malformed_request';
      const doubledCode = door.seesWire ? 'malformed_request' : joinedCode;
      await expectRefused(addHeader(request, name, valueOf(request, name)), 400, doubledCode);
      await expectRefused(addHeader(request, name.toUpperCase(), valueOf(request, name)), 400, doubledCode);
      await expectRefused(withHeader(request, name, `${valueOf(request, name)}, ${valueOf(request, name)}`), 400, joinedCode);
    });

    it.each(carriers)('N3 %s empty', async (name) => {
      const code = name === 'x-keyguard-version' ? 'unsupported_version' : 'malformed_request';
      await expectRefused(withHeader(await signed(key), name, ''), 400, code);
    });

    it.each(carriers)('N4 %s as a comma list', async (name) => {
      const request = await signed(key);
      for (const list of [`${valueOf(request, name)},`, `,${valueOf(request, name)}`, `${valueOf(request, name)},x`]) {
        await expectRefused(withHeader(request, name, list), 400, name === 'x-keyguard-version' ? 'unsupported_version' : 'malformed_request');
      }
    });

    if (carriage === 'headers') {
      it.each(['0', '2', '01', '1.0', 'kg-v1', '+1', '\xb9'])('N5 version %j', async (version) => {
        await expectRefused(withHeader(await signed(key), 'x-keyguard-version', version), 400, 'unsupported_version');
      });
    } else {
      it.each(['keyguard-v0', 'keyguard-v2', 'keyguard-v01', 'keyguard', 'kg-v1', 'Keyguard-v1', 'keyguard-v1 ', ''])('N5 the version is in the tag: %j', async (tag) => {
        const request = await signed(key);
        const input = valueOf(request, 'signature-input').replace('"keyguard-v1"', `"${tag}"`);
        await expectRefused(withHeader(request, 'signature-input', input), 401, 'signature_invalid');
      });
    }

    it('N6 the other base64 alphabet', async () => {
      for (let i = 0; i < 3; i += 1) {
        const request = await signed(key, { target: `/proxy/a?${i}` });
        const text = `${valueOf(request, SIGNATURE).slice(1)}`;
        await expectRefused(withHeader(request, SIGNATURE, `-${text}`), 400, 'malformed_request');
        await expectRefused(withHeader(request, SIGNATURE, `_${text}`), 400, 'malformed_request');
        const hash = valueOf(request, 'x-keyguard-body-sha256').slice(1);
        await expectRefused(withHeader(request, 'x-keyguard-body-sha256', `-${hash}`), 400, 'malformed_request');
        await expectRefused(withHeader(request, 'x-keyguard-nonce', `+${valueOf(request, 'x-keyguard-nonce').slice(1)}`), 400, 'malformed_request');
        await expectRefused(withHeader(request, 'x-keyguard-key-id', `/${key.keyId.slice(1)}`), 400, 'malformed_request');
      }
    });

    it('N7 padding missing or extra', async () => {
      const request = await signed(key);
      const text = valueOf(request, SIGNATURE);
      for (const odd of [text.slice(0, -1), text.slice(0, -2), `${text}=`]) await expectRefused(withHeader(request, SIGNATURE, odd), 400, 'malformed_request');
      const hash = valueOf(request, 'x-keyguard-body-sha256');
      for (const odd of [hash.slice(0, -1), `${hash}=`]) {
        await expectRefused(withHeader(request, 'x-keyguard-body-sha256', odd), 400, 'malformed_request');
      }
      await expectRefused(withHeader(request, 'x-keyguard-nonce', `${valueOf(request, 'x-keyguard-nonce')}==`), 400, 'malformed_request');
      await expectRefused(withHeader(request, 'x-keyguard-key-id', `${key.keyId}=`), 400, 'malformed_request');
    });

    it('N8 trailing bits that are not zero', async () => {
      const request = await signed(key);
      const bump = (text: string, at: number): string => {
        const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';
        const next = alphabet[(alphabet.indexOf(text.at(at)!.replace('-', '+').replace('_', '/')) + 1) % 64]!;
        return text.slice(0, at) + next + text.slice(at + 1 || text.length);
      };
      await expectRefused(withHeader(request, SIGNATURE, bump(valueOf(request, SIGNATURE), 85)), 400, 'malformed_request');
      await expectRefused(withHeader(request, 'x-keyguard-body-sha256', bump(valueOf(request, 'x-keyguard-body-sha256'), 42)), 400, 'malformed_request');
      await expectRefused(withHeader(request, 'x-keyguard-nonce', bump(valueOf(request, 'x-keyguard-nonce'), 21)), 400, 'malformed_request');
      await expectRefused(withHeader(request, 'x-keyguard-key-id', bump(key.keyId, 42)), 400, 'malformed_request');
    });

    it.each(carriers)('N9 white space, NUL and non-ASCII in %s', async (name) => {
      const request = await signed(key);
      const value = valueOf(request, name);
      const middle = Math.floor(value.length / 2);
      const code = name === 'x-keyguard-version' ? 'unsupported_version' : 'malformed_request';
      for (const odd of [' ', '\t', '\xa0', 'é']) {
        await expectRefused(withHeader(request, name, `${value.slice(0, middle)}${odd}x${value.slice(middle)}`), 400, code);
      }
      // Node's own parser ends these before the adapter sees them.
      for (const control of ['\0', '\r', '\n', '\x7f']) {
        const before = bench.passed.length;
        const answer = await send(bench, withHeader(request, name, `${value.slice(0, middle)}${control}${value.slice(middle)}`));
        expect([0, 400]).toContain(answer.status);
        expect(bench.passed.length).toBe(before);
      }
    });

    it('N10 a nonce of 21 or 23 characters', async () => {
      const request = await signed(key);
      const nonce = valueOf(request, 'x-keyguard-nonce');
      for (const odd of [nonce.slice(0, 21), `${nonce}A`]) await expectRefused(withHeader(request, 'x-keyguard-nonce', odd), 400, 'malformed_request');
    });

    it('N11 both carriages', async () => {
      const both = async (names: readonly string[]): Promise<WireRequest> => {
        const request = await signed(key);
        const second = await otherWire.signed(key);
        return { ...request, headers: [...request.headers, ...second.headers.filter(([name]) => names.includes(name))] };
      };
      await expectRefused(await both(otherWire.carriers), 400, 'malformed_request');
      // One that carries no signature is a header like any other where this carriage does not have it.
      for (const name of otherWire.carriers.filter((name) => name !== 'content-digest')) await expectRefused(await both([name]), 400, 'malformed_request');
      if (carriage === 'headers') await expectAccepted(await both(['content-digest']));
      // The very same signature in both, and both at the doors of either kind.
      const request = await signed(key);
      const fields: [string, string][] = [
        ['signature-input', `keyguard=("@method" "@authority" "@path" "@query" "content-digest" "content-type");created=${valueOf(request, 'x-keyguard-timestamp')};keyid="${key.keyId}";nonce="${valueOf(request, 'x-keyguard-nonce')}";tag="keyguard-v1"`],
        ['signature', `keyguard=:${valueOf(request, SIGNATURE)}:`],
        ['content-digest', `sha-256=:${valueOf(request, 'x-keyguard-body-sha256')}:`],
      ];
      const headers = ['version', 'key-id', 'timestamp', 'nonce', 'body-sha256', 'signature'].map((name): [string, string] => {
        return [`x-keyguard-${name}`, name === 'version' ? '1' : valueOf(request, `x-keyguard-${name}`)];
      });
      const ordinary: [string, string][] = [['host', AUTHORITY], ['content-type', 'application/json']];
      await expectRefused({ ...request, headers: [...ordinary, ...fields, ...headers] }, 400, 'malformed_request');
      await expectRefused({ ...request, headers: [...ordinary, ...headers, ...fields] }, 400, 'malformed_request');
      await expectAccepted({ ...request, headers: [...ordinary, ...(carriage === 'headers' ? headers : fields)] });
    });

    it('N12 a carriage that is not enabled', async () => {
      await expectRefused(await otherWire.signed(key), 400, 'malformed_request');
      const bare: WireRequest = { ...(await signed(key)), headers: [['host', AUTHORITY], ['content-type', 'application/json']] };
      await expectRefused(bare, 400, 'malformed_request');
      // The same request passes where it is the one that is enabled.
      const elsewhere = await otherWire.openWorkbench({ registry: bench.registry });
      await expectAccepted(await otherWire.signed(key), elsewhere);
      await expectRefused(await signed(key), 400, 'malformed_request', elsewhere);
      await elsewhere.close();
    });

    // Beyond a number of theirs servers drop headers in silence (Node 20) or refuse (Node 24): this one lies far below.
    it('more than 256 headers, whatever they are', async () => {
      const filled = async (count: number): Promise<WireRequest> => {
        const request = await signed(key);
        const added = 2; // by the framing: content-length and connection
        const fillers = Array.from({ length: count - added - request.headers.length }, (_, i): [string, string] => [`x-filler-${i}`, '']);
        return { ...request, headers: [...fillers, ...request.headers] };
      };
      await expectAccepted(await filled(256));
      await expectRefused(await filled(257), 400, 'malformed_request');
    });

    it.each(['anthropic-foo', 'openai-debug', 'x-goog-user-project', 'x-keyguard-admin'])('an unsupported header: %s', async (name) => {
      await expectRefused(addHeader(await signed(key), name, '1'), 400, 'unsupported_header');
    });
  });

  describe('time', () => {
    it('N13 301 s old', async () => {
      await expectRefused(await signed(key, { nowMs: NOW_MS - 301_000 }), 401, 'timestamp_out_of_window');
    });

    it('N14 61 s ahead; the answer tells the time', async () => {
      const request = await signed(key, { nowMs: NOW_MS + 61_000 });
      const answer = await send(bench, request);
      expect(answer).toMatchObject({ status: 401, code: 'timestamp_out_of_window' });
      expect(answer.headers.get('x-keyguard-time')).toBe(String(NOW_MS / 1000));
      expect(JSON.parse(answer.body)).toMatchObject({ server_time: NOW_MS / 1000 });
    });

    it('N15 milliseconds', async () => {
      await expectRefused(withHeader(await signed(key), 'x-keyguard-timestamp', String(NOW_MS)), 400, 'malformed_request');
    });

    it.each(['2027-01-15T08:00:00Z', '', 'NaN', '1e9', '0x6B49D200', '+180000000', '18000000.0', '17 0000000', '1800000000abc', '0180000000', '-180000000', '\xb9800000000'])(
      'N16 timestamp %j',
      async (timestamp) => {
        await expectRefused(withHeader(await signed(key), 'x-keyguard-timestamp', timestamp), 400, 'malformed_request');
      },
    );

    it('N17 the edges 300 and −60 are accepted exactly', async () => {
      await expectAccepted(await signed(key, { nowMs: NOW_MS - 300_000 }));
      await expectAccepted(await signed(key, { nowMs: NOW_MS + 60_000 }));
    });

    it('N18 a clock that throws or tells no time', async () => {
      let mode: 'right' | 'throws' | 'nan' = 'right';
      const broken = await openWorkbench({
        clock: {
          nowMs: () => {
            if (mode === 'throws') throw new Error('no clock');
            return mode === 'nan' ? Number.NaN : NOW_MS;
          },
        },
      });
      const own = await broken.enrolledKey();
      await expectAccepted(await signed(own), broken);
      mode = 'throws';
      await expectRefused(await signed(own), 503, 'store_unavailable', broken);
      mode = 'nan';
      await expectRefused(await signed(own), 503, 'store_unavailable', broken);
      await broken.close();
    });
  });

  describe('signature', () => {
    it('N19 each bit flipped', async () => {
      const request = await signed(key);
      const bytes = fromBase64(valueOf(request, SIGNATURE))!;
      for (let bit = 0; bit < 512; bit += 1) {
        const flipped = bytes.slice();
        flipped[bit >> 3]! ^= 1 << (bit & 7);
        await expectRefused(withHeader(request, SIGNATURE, toBase64(flipped)), 401, 'signature_invalid');
      }
    });

    it('N20 DER', async () => {
      const request = await signed(key);
      const { r, s } = scalars(request);
      const integer = (value: bigint): Buffer => {
        const hex = value.toString(16).padStart(64, '0');
        const body = Buffer.from(hex >= '8' ? `00${hex}` : hex, 'hex');
        return Buffer.concat([Buffer.from([2, body.length]), body]);
      };
      const body = Buffer.concat([integer(r), integer(s)]);
      const der = Buffer.concat([Buffer.from([0x30, body.length]), body]);
      await expectRefused(withHeader(request, SIGNATURE, der.toString('base64')), 400, 'malformed_request');
      await expectRefused(withHeader(request, SIGNATURE, der.subarray(0, 64).toString('base64')), 401, 'signature_invalid');
    });

    it.each([0, 63, 65, 66, 128])('N21 %i bytes', async (length) => {
      const request = await signed(key);
      const bytes = new Uint8Array(length);
      bytes.set(fromBase64(valueOf(request, SIGNATURE))!.subarray(0, length));
      await expectRefused(withHeader(request, SIGNATURE, toBase64(bytes)), 400, 'malformed_request');
    });

    it('N22 and N23 r or s zero, n, or beyond', async () => {
      const request = await signed(key);
      const { r, s } = scalars(request);
      const limit = 2n ** 256n;
      const odd: [bigint, bigint][] = [[0n, s], [r, 0n], [0n, 0n], [N, s], [r, N], [N, N], [limit - 1n, s], [r, limit - 1n], [r + N, s], [r, s + N]];
      for (const [oddR, oddS] of odd) {
        if (oddR >= limit || oddS >= limit) continue;
        await expectRefused(withHeader(request, SIGNATURE, signature(oddR, oddS)), 401, 'signature_invalid');
      }
    });

    it('N24 and N25 another enrolled key: its signature under our id, our signature under its id', async () => {
      const other = await bench.enrolledKey();
      const ours = await signed(key);
      const theirs = await signed(other);
      await expectRefused(withHeader(ours, SIGNATURE, valueOf(theirs, SIGNATURE)), 401, 'signature_invalid');
      await expectRefused(withHeader(ours, 'x-keyguard-key-id', other.keyId), 401, 'signature_invalid');
    });

    it('N27 (r, n − s) of a used request is a replay', async () => {
      const request = await signed(key);
      await expectAccepted(request);
      const { r, s } = scalars(request);
      await expectRefused(withHeader(request, SIGNATURE, signature(r, N - s)), 401, 'replay_detected');
    });

    it('N28 a base with another form', async () => {
      const bend: [string, (base: string) => string][] = [
        ['trailing LF', (base) => `${base}\n`],
        ['CRLF', (base) => base.replaceAll('\n', '\r\n')],
        ['missing space', (base) => base.replace('"@path": ', '"@path":')],
        ['other order', (base) => base.replace(/^("@method".*)\n("@authority".*)\n/, '$2\n$1\n')],
        ['no parameters', (base) => base.slice(0, base.lastIndexOf('\n'))],
      ];
      for (const [, change] of [['control', (base: string) => base] as const, ...bend]) {
        const request = await signed(key);
        const [path, query] = request.target.split('?') as [string, string];
        const base = signatureBase(
          {
            method: request.method,
            authority: AUTHORITY,
            path,
            query,
            bodySha256: valueOf(request, 'x-keyguard-body-sha256'),
            contentType: 'application/json',
            coveredHeaders: [],
            timestamp: valueOf(request, 'x-keyguard-timestamp'),
            keyId: key.keyId,
            nonce: valueOf(request, 'x-keyguard-nonce'),
          },
          'keyguard-v1',
        );
        const bent = withHeader(request, SIGNATURE, toBase64(await key.sign(utf8(change(base)))));
        if (change(base) === base) await expectAccepted(bent);
        else await expectRefused(bent, 401, 'signature_invalid');
      }
    });

    it.each(['keyguard-enroll-v1', 'keyguard-rotate-v1'] as const)('N29 a signature with the tag %s', async (tag) => {
      await expectRefused(await signed(key, { tag }), 401, 'signature_invalid');
    });
  });

  describe('target', () => {
    it('N30 another method', async () => {
      for (const method of ['PUT', 'PATCH', 'DELETE']) await expectRefused({ ...(await signed(key)), method }, 401, 'signature_invalid');
      for (const method of ['M-SEARCH']) await expectRefused({ ...(await signed(key)), method }, 400, 'malformed_request');
    });

    it('N31 another path', async () => {
      for (const target of ['/proxy/openai/v1/chat/completion?a=1&b=2', '/proxy/openai/v1/chat/completions/?a=1&b=2', '/proxy/x?a=1&b=2', '/proxy?a=1&b=2']) {
        await expectRefused({ ...(await signed(key)), target }, 401, 'signature_invalid');
      }
    });

    it.each([
      ['a=1&b=2', 'a=1&b=3'],
      ['a=1&b=2', 'b=2&a=1'],
      ['a=1&b=2', 'a=1&b=2&a=1'],
      ['a=1&b=2', 'a=1&b=2&'],
      ['a=1&b=2', ''],
      ['', 'a'],
      ['a=x+y', 'a=x%20y'],
      ['a=%7E', 'a=~'],
      ['a=%3d', 'a=%3D'],
      ['a=1', '?a=1'],
    ])('N32 query %j sent as %j', async (query, sent) => {
      await expectRefused({ ...(await signed(key, { target: `/proxy/a?${query}` })), target: `/proxy/a?${sent}` }, 401, 'signature_invalid');
    });

    it('N32 an absent query equals an empty one, and nothing else', async () => {
      await expectAccepted({ ...(await signed(key, { target: '/proxy/a' })), target: '/proxy/a?' });
    });

    it("N33 another deployment's authority", async () => {
      const elsewhere = await signed(key, { authority: 'other.example.com' });
      await expectRefused(elsewhere, 401, 'signature_invalid');
      await expectRefused(withHeader(elsewhere, 'host', AUTHORITY), 401, 'signature_invalid');
    });

    it('N33 with several authorities the Host must name one of them, exactly', async () => {
      const two = await openWorkbench({ policy: { authorities: ['a.example', 'b.example:8080'] } });
      const own = await two.enrolledKey();
      await expectAccepted(await signed(own, { authority: 'b.example:8080' }), two);
      await expectAccepted(withHeader(await signed(own, { authority: 'a.example' }), 'host', 'A.Example:443'), two);
      await expectRefused(await signed(own, { authority: 'c.example' }), 401, 'signature_invalid', two);
      await expectRefused(withHeader(await signed(own, { authority: 'a.example' }), 'host', 'b.example:8080'), 401, 'signature_invalid', two);
      for (const host of ['b.example', 'a.example.', 'a.example:80:80', 'x@a.example', 'a.example/', '']) {
        await expectNothingPasses(withHeader(await signed(own, { authority: 'a.example' }), 'host', host), two);
      }
      // HTTP/1.1 servers refuse a request without a Host by themselves; HTTP/1.0 knows none.
      const hostless = toBytes(withoutHeader(await signed(own, { authority: 'a.example' }), 'host')).toString('latin1').replace('HTTP/1.1', 'HTTP/1.0');
      if (door.seesWire) await expectRefused(Buffer.from(hostless, 'latin1'), 400, 'malformed_request', two);
      else await expectNothingPasses(Buffer.from(hostless, 'latin1'), two);
      await two.close();
    });

    it('N34 two Hosts', async () => {
      const request = await signed(key);
      await expectRefused(addHeader(request, 'Host', AUTHORITY), 400, 'malformed_request');
      await expectRefused(addHeader(request, 'host', 'evil.example'), 400, 'malformed_request');
    });

    it('N35 a spoofed X-Forwarded-Host changes nothing', async () => {
      await expectAccepted(addHeader(await signed(key), 'x-forwarded-host', 'evil.example'));
      expect(bench.passed.at(-1)!.authority).toBe(AUTHORITY);
      const elsewhere = await signed(key, { authority: 'other.example.com' });
      await expectRefused(addHeader(elsewhere, 'x-forwarded-host', 'other.example.com'), 401, 'signature_invalid');
      await expectRefused(addHeader(elsewhere, 'forwarded', 'host=other.example.com'), 401, 'signature_invalid');
    });

    it.each(['http://evil.example/proxy/x', `https://${AUTHORITY}/proxy/x`, '*', `${AUTHORITY}:443`, '//proxy/x', '/proxy/\xe9'])('N36 target form %j', async (target) => {
      await expectNothingPasses({ ...(await signed(key)), target });
    });

    it.each([AUTHORITY, 'evil.example'])('N36 the signed target in absolute form, of the host %s', async (host) => {
      const request = await signed(key);
      const absolute = { ...request, target: `http://${host}${request.target}` };
      if (door.seesWire) {
        await expectNothingPasses(absolute);
        return;
      }
      // The runtime took path and query from it, and those were signed; the authority is the configured one.
      await expectAccepted(absolute);
      expect(bench.passed.at(-1)).toMatchObject({ authority: AUTHORITY, path: '/proxy/openai/v1/chat/completions', query: 'a=1&b=2' });
      await expectRefused(request, 401, 'replay_detected');
    });

    it('N36 with several authorities the host of an absolute form is no way around', async () => {
      const two = await openWorkbench({ policy: { authorities: ['a.example', 'b.example'] } });
      const own = await two.enrolledKey();
      const request = await signed(own, { authority: 'a.example' });
      await expectNothingPasses({ ...request, target: `http://b.example${request.target}` }, two);
      await expectNothingPasses({ ...request, target: `http://evil.example${request.target}` }, two);
      await expectNothingPasses({ ...withHeader(request, 'host', 'b.example'), target: `http://b.example${request.target}` }, two);
      await expectAccepted(request, two);
      await two.close();
    });

    it.each([
      '/proxy//evil/x',
      '/proxy/..;/b',
      '/proxy/a%2fb',
      '/proxy/a%2Fb',
      '/proxy/a%5cb',
      '/proxy/a%00b',
      '/proxy/a%0ab',
      '/proxy/a%25b',
      '/proxy/a%7fb',
      '/proxy/a#b',
      '/proxy/a|b',
      '/proxy/a%zz',
    ])('N37 %j', async (target) => {
      await expectRefused({ ...(await signed(key)), target }, 400, 'malformed_request');
    });

    // What a runtime resolves by itself.
    it.each(['/proxy/\\evil', '/proxy/a/../b', '/proxy/./b', '/proxy/%2e%2e/b', '/proxy/%2E%2e/b'])('N37 %j', async (target) => {
      const request = { ...(await signed(key)), target };
      if (door.seesWire) await expectRefused(request, 400, 'malformed_request');
      else await expectNothingPasses(request);
    });

    it.each(['/proxy/a/../b', '/proxy/./b', '/proxy/a/%2e%2E/b'])('N37 %j for the signed /proxy/b', async (target) => {
      const request = await signed(key, { target: '/proxy/b' });
      const spelled = { ...request, target };
      if (door.seesWire) {
        await expectRefused(spelled, 400, 'malformed_request');
        return;
      }
      // One message, which was signed: it passes once, in whichever spelling it comes, and is handed on as signed.
      await expectAccepted(spelled);
      expect(bench.passed.at(-1)!.path).toBe('/proxy/b');
      await expectRefused(request, 401, 'replay_detected');
    });

    it('N38 a mount-stripped URL used for the original', async () => {
      const stripped = await signed(key, { target: '/openai/v1/chat/completions' });
      await expectRefused({ ...stripped, target: '/proxy/openai/v1/chat/completions' }, 401, 'signature_invalid');
      await expectAccepted(await signed(key, { target: '/proxy/proxy/x' }));
      expect(bench.passed.at(-1)!.path).toBe('/proxy/proxy/x');
    });

    it('N39 the route prefix in another case', async () => {
      const before = bench.passed.length;
      expect((await send(bench, { ...(await signed(key, { target: '/proxy/a' })), target: '/PROXY/a' })).status).toBe(404);
      expect((await send(bench, await signed(key, { target: '/Proxy/a' }))).status).toBe(404);
      expect(bench.passed.length).toBe(before);
    });
  });

  describe('body', () => {
    it('N40 changed, appended, truncated', async () => {
      for (const body of ['{"model":"n"}', '{"model":"m"} ', '{"model":"m"', '']) {
        await expectRefused({ ...(await signed(key)), body: utf8(body) }, 401, 'signature_invalid');
      }
    });

    it.each(['application/json', 'text/plain', 'multipart/form-data; boundary=x'])('N41 a body added to a request signed without one (%s)', async (type) => {
      for (const method of ['GET', 'DELETE', 'POST']) {
        for (const headers of [[], [['content-type', type]]] as Headers[]) {
          for (const chunked of [false, true]) {
            const bytes = toBytes({ ...(await signed(key, { method, headers, body: '' })), body: utf8('{"evil":true}') }, { chunked });
            if (door.seesWire || method !== 'GET') {
              await expectRefused(bytes, 401, 'signature_invalid');
              continue;
            }
            // A `Request` by GET has no body: what was added reaches nobody, and the message is the one that was signed.
            expect(await exchange(bench.port, bytes)).toMatchObject({ status: 200 });
            expect(bench.passed.at(-1)!.method).toBe('GET');
            expect(bench.passed.at(-1)!.body).toHaveLength(0);
          }
        }
      }
    });

    it('N41 an added body is not taken for the next request on its connection', async () => {
      const next = `GET /api/keyguard/time HTTP/1.1\r\nhost: ${AUTHORITY}\r\nconnection: close\r\n\r\n`;
      const before = bench.passed.length;
      const bytes = toBytes({ ...(await signed(key, { method: 'GET', headers: [], body: '' })), body: utf8(next) });
      const kept = Buffer.from(bytes.toString('latin1').replace('connection: close\r\n', ''), 'latin1');
      const { body } = await exchange(bench.port, Buffer.concat([kept, Buffer.from(next)]));
      expect(body.match(/"server_time"/g)).toHaveLength(1);
      expect(bench.passed.length - before).toBe(door.seesWire ? 0 : 1);
    });

    it('N42 and N43 the right hash for another body; the hash changed along with the body', async () => {
      const other = await signed(key, { body: '{"model":"other"}' });
      const request = await signed(key);
      await expectRefused({ ...request, body: other.body }, 401, 'signature_invalid');
      await expectRefused({ ...withHeader(request, 'x-keyguard-body-sha256', valueOf(other, 'x-keyguard-body-sha256')), body: other.body }, 401, 'signature_invalid');
      await expectRefused(withHeader(request, 'x-keyguard-body-sha256', valueOf(other, 'x-keyguard-body-sha256')), 401, 'signature_invalid');
    });

    it.each(['gzip', 'deflate', 'br', 'gzip, identity', 'x'])('N44 content-encoding %s', async (encoding) => {
      await expectRefused(addHeader(await signed(key), 'content-encoding', encoding), 415, 'unsupported_encoding');
    });

    it('N45 over the limit, by length and in chunks', async () => {
      const small = await openWorkbench({ policy: { authorities: [AUTHORITY], maxBodyBytes: 1000 } });
      const own = await small.enrolledKey();
      await expectAccepted(await signed(own, { body: 'x'.repeat(1000) }), small);
      const big = await signed(own, { body: 'x'.repeat(1001) });
      await expectRefused(toBytes(big), 413, 'body_too_large', small);
      await expectRefused(toBytes(big, { chunked: true }), 413, 'body_too_large', small);
      await small.close();
    });

    it('N45 all unverified bodies together have a limit', async () => {
      const tight = await openWorkbench({ policy: { authorities: [AUTHORITY], maxUnverifiedBytes: 1500 } });
      const own = await tight.enrolledKey();
      await expectRefused(await signed(own, { body: 'x'.repeat(2000) }), 503, 'overloaded', tight);
      for (let i = 0; i < 5; i += 1) await expectAccepted(await signed(own, { body: 'x'.repeat(1400) }), tight);
      await tight.close();
    });

    it('N46 another parser ran first: a configuration error, never a pass', async () => {
      const parsed = await openWorkbench({ before: (app) => door.parseFirst(app) });
      const own = await parsed.enrolledKey();
      await expectRefused(await signed(own), 500, 'invalid_option', parsed);
      await expectRefused(await signed(own, { headers: [['content-type', 'application/json; charset=utf-8']], body: '{}' }), 500, 'invalid_option', parsed);
      await parsed.close();
    });

    it('N47 equal JSON, other bytes', async () => {
      const request = await signed(key, { body: '{"a":1,"b":2}' });
      for (const body of ['{"b":2,"a":1}', '{"a":1, "b":2}', '{"a":1.0,"b":2}', '\uFEFF{"a":1,"b":2}']) {
        await expectRefused({ ...request, body: utf8(body) }, 401, 'signature_invalid');
      }
    });

    it('N48 bytes that are no UTF-8 are hashed as bytes', async () => {
      const body = Uint8Array.of(0xff, 0xfe, 0x00, 0xc0, 0xaf);
      await expectAccepted(await signed(key, { headers: [['content-type', 'application/octet-stream']], body }));
      expect(Buffer.from(bench.passed.at(-1)!.body)).toEqual(Buffer.from(body));
      await expectAccepted(await signed(key, { body: new Uint8Array(300_000).fill(7) as Bytes }));
    });

    it('a body that never ends is answered and the connection closed', async () => {
      const impatient = await openWorkbench({ policy: { authorities: [AUTHORITY], bodyTimeoutMs: 100 } });
      const own = await impatient.enrolledKey();
      const bytes = toBytes(await signed(own));
      await expectRefused(bytes.subarray(0, -3), 408, 'request_timeout', impatient);
      await impatient.close();
    });
  });

  describe('covered headers', () => {
    it('N49 Content-Type changed, removed, added, doubled', async () => {
      const request = await signed(key);
      await expectRefused(withHeader(request, 'content-type', 'text/plain'), 401, 'signature_invalid');
      await expectRefused(withHeader(request, 'content-type', 'application/JSON'), 401, 'signature_invalid');
      await expectRefused(withoutHeader(request, 'content-type'), unlistedStatus, unlistedCode);
      await expectRefused(addHeader(await signed(key, { headers: [] }), 'content-type', 'text/plain'), unlistedStatus, unlistedCode);
      await expectRefused(addHeader(request, 'Content-Type', 'application/json'), doubledStatus, doubledCode);
      await expectRefused(addHeader(request, 'Content-Type', 'text/plain'), doubledStatus, doubledCode);
    });

    it.each(['', 'text/pl\xe4in', 'text/plain;\ta=b', `text/${'x'.repeat(1020)}`])('N49 a Content-Type that no signer would sign: %j', async (type) => {
      await expectRefused(withHeader(await signed(key), 'content-type', type), 400, 'malformed_request');
    });

    it('N49 the longest Content-Type', async () => {
      await expectAccepted(await signed(key, { headers: [['content-type', `text/${'x'.repeat(1019)}`]] }));
    });

    it.each(COVERED_HEADERS)('N50 %s added, removed, changed, doubled, empty', async (name) => {
      await expectRefused(addHeader(await signed(key), name, 'value'), unlistedStatus, unlistedCode);
      const request = await signed(key, { headers: [[name, 'value']] });
      await expectRefused(withoutHeader(request, name), unlistedStatus, unlistedCode);
      await expectRefused(withHeader(request, name, 'Value'), 401, 'signature_invalid');
      await expectRefused(addHeader(request, name.toUpperCase(), 'value'), doubledStatus, doubledCode);
      await expectRefused(addHeader(request, name, 'other'), doubledStatus, doubledCode);
      await expectRefused(withHeader(request, name, ''), 400, 'malformed_request');
      await expectAccepted(await signed(key, { headers: [[name, 'value']] }));
      expect(bench.passed.at(-1)!.coveredHeaders).toEqual([[name, 'value']]);
    });

    it('N50 a signed list that arrives on two lines', async () => {
      const request = await signed(key, { headers: [['anthropic-beta', 'a, b']] });
      const split = addHeader(withHeader(request, 'anthropic-beta', 'a'), 'anthropic-beta', 'b');
      const swapped = addHeader(withHeader(request, 'anthropic-beta', 'b'), 'anthropic-beta', 'a');
      await expectRefused(swapped, doubledStatus, doubledCode);
      if (door.seesWire) {
        await expectRefused(split, 400, 'malformed_request');
        return;
      }
      // The same message by RFC 9110, section 5.3, and it is handed on as it was signed.
      await expectAccepted(split);
      expect(bench.passed.at(-1)!.coveredHeaders).toEqual([['anthropic-beta', 'a, b']]);
      await expectRefused(request, 401, 'replay_detected');
    });

    it('N50 all together, sent in another order than signed', async () => {
      const headers = COVERED_HEADERS.map((name): [string, string] => [name, `v-${name}`]);
      const request = await signed(key, { headers });
      await expectAccepted({ ...request, headers: request.headers.toReversed() });
      expect(bench.passed.at(-1)!.coveredHeaders.map(([name]) => name)).toEqual([...COVERED_HEADERS]);
    });

    it('N51 an uncovered header is not handed on', async () => {
      await expectAccepted(addHeader(addHeader(await signed(key), 'authorization', 'Bearer x'), 'x-anything', 'y'));
      expect(JSON.stringify(bench.passed.at(-1), (name, value: unknown) => (name === 'body' ? null : value))).not.toMatch(/authorization|x-anything/i);
    });

    it('N52 a challenge is signed with the rest: another value does not verify', async () => {
      const request = await signed(key, { headers: [['x-keyguard-challenge', 'one']] });
      await expectRefused(withHeader(request, 'x-keyguard-challenge', 'two'), 401, 'signature_invalid');
      await expectRefused(withoutHeader(request, 'x-keyguard-challenge'), unlistedStatus, unlistedCode);
    });
  });

  describe('replay', () => {
    it('N53 twice', async () => {
      const request = await signed(key);
      await expectAccepted(request);
      await expectRefused(request, 401, 'replay_detected');
      await expectRefused(toBytes(request, { chunked: true }), 401, 'replay_detected');
    });

    it('N53 again in the other carriage, at a door that takes it', async () => {
      const replayStore = memoryReplayStore({ clock: { nowMs: () => NOW_MS }, maxFutureSeconds: 60, startedAtMs: 0 });
      const first = await openWorkbench({ replayStore });
      const second = await otherWire.openWorkbench({ replayStore, registry: first.registry });
      const own = await first.enrolledKey();
      const random = { bytes: (length: number): Bytes => new Uint8Array(length).fill(53) };
      await expectAccepted(await signed(own, { random }), first);
      await expectRefused(await otherWire.signed(own, { random }), 401, 'replay_detected', second);
      await first.close();
      await second.close();
    });

    it('N54 100 concurrent copies: one passes', async () => {
      const before = bench.passed.length;
      const bytes = toBytes(await signed(key));
      const answers = await Promise.all(Array.from({ length: 100 }, () => exchange(bench.port, bytes)));
      expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
      expect(answers.filter(({ code }) => code === 'replay_detected')).toHaveLength(99);
      expect(bench.passed.length).toBe(before + 1);
    });

    it('N55 a future-dated request is remembered until just before it expires, and refused after', async () => {
      const own = await openWorkbench();
      const device = await own.enrolledKey();
      const request = await signed(device, { nowMs: NOW_MS + 60_000 });
      await expectAccepted(request, own);
      own.time.nowMs = NOW_MS + 60_000 + 300_000 + 999;
      await expectRefused(request, 401, 'replay_detected', own);
      own.time.nowMs += 1;
      await expectRefused(request, 401, 'timestamp_out_of_window', own);
      own.time.nowMs += 3_600_000;
      await expectAccepted(await signed(device, { nowMs: own.time.nowMs }), own);
      // The clock steps back into the window: what was forgotten stays refused.
      own.time.nowMs = NOW_MS + 60_000;
      await expectRefused(request, 401, 'replay_detected', own);
      await own.close();
    });

    it.each<[string, ReplayStore['claim']]>([
      ['throws', () => { throw new Error('down'); }],
      ['rejects', () => Promise.reject(new Error('down'))],
      ['hangs', () => new Promise<boolean>(() => {})],
      ['answers undefined', () => undefined as unknown as boolean],
      ['answers 1', () => 1 as unknown as boolean],
      ["answers 'OK'", async () => 'OK' as unknown as boolean],
    ])('N56 a store that %s', async (_name, claim) => {
      const broken = await openWorkbench({ replayStore: { claim }, policy: { authorities: [AUTHORITY], seamTimeoutMs: 100 } });
      const answer = await send(broken, await signed(await broken.enrolledKey()));
      expect(answer).toMatchObject({ status: 503, code: 'store_unavailable' });
      expect(answer.headers.get('retry-after')).toMatch(/^[1-9]/);
      expect(broken.passed).toHaveLength(0);
      await broken.close();
    });

    it('N57 a full store', async () => {
      const clock = { nowMs: () => NOW_MS };
      const full = await openWorkbench({ replayStore: memoryReplayStore({ clock, capacity: 2, maxFutureSeconds: 60, startedAtMs: 0 }) });
      const own = await full.enrolledKey();
      await expectAccepted(await signed(own), full);
      const second = await signed(own);
      await expectAccepted(second, full);
      await expectRefused(await signed(own), 503, 'overloaded', full);
      await expectRefused(second, 401, 'replay_detected', full);
      await full.close();
    });

    it('N58 restart with a memory store: what was created before boot is refused', async () => {
      const time = { nowMs: NOW_MS };
      const restarted = await openWorkbench({ clock: { nowMs: () => time.nowMs }, replayStore: memoryReplayStore({ clock: { nowMs: () => time.nowMs } }) });
      const own = await restarted.enrolledKey();
      await expectRefused(await signed(own, { nowMs: NOW_MS - 10_000 }), 503, 'store_unavailable', restarted);
      time.nowMs = NOW_MS + 3000;
      for (const ago of [-2000, 0, 10_000, 200_000]) await expectRefused(await signed(own, { nowMs: NOW_MS - ago }), 401, 'replay_detected', restarted);
      await expectAccepted(await signed(own, { nowMs: NOW_MS + 3000 }), restarted);
      // Such a store also bounds how far ahead a request may be dated: else it would outlive the next restart.
      await expectRefused(await signed(own, { nowMs: NOW_MS + 3000 + 3000 }), 401, 'timestamp_out_of_window', restarted);
      await restarted.close();
    });

    it('N59 a bad signature does not consume the nonce', async () => {
      const request = await signed(key);
      await expectRefused({ ...request, body: utf8('{}') }, 401, 'signature_invalid');
      await expectAccepted(request);
    });

    it('N60 the same nonce under two keys is accepted', async () => {
      const other = await bench.enrolledKey();
      const random = { bytes: (length: number): Bytes => new Uint8Array(length).fill(42) };
      await expectAccepted(await signed(key, { random }));
      await expectAccepted(await signed(other, { random }));
      await expectRefused(await signed(key, { random, target: '/proxy/other' }), 401, 'replay_detected');
    });

    it('N61 two nodes, one store', async () => {
      const replayStore = memoryReplayStore({ clock: { nowMs: () => NOW_MS }, maxFutureSeconds: 60, startedAtMs: 0 });
      const first = await openWorkbench({ replayStore });
      const second = await openWorkbench({ replayStore, registry: first.registry });
      const own = await first.enrolledKey();
      const request = await signed(own);
      const answers = await Promise.all(Array.from({ length: 40 }, (_, i) => send(i % 2 === 0 ? first : second, request)));
      expect(answers.filter(({ status }) => status === 200)).toHaveLength(1);
      expect(first.passed.length + second.passed.length).toBe(1);
      await first.close();
      await second.close();
    });
  });

  describe('device', () => {
    it('N62 every status but active', async () => {
      const own = await bench.enrolledKey();
      const device = bench.registry.findByKeyId(own.keyId) as { deviceId: string };
      bench.registry.transition(device.deviceId, 'suspend');
      await expectRefused(await signed(own), 403, 'device_suspended');
      bench.registry.transition(device.deviceId, 'resume');
      await expectAccepted(await signed(own));
      bench.registry.transition(device.deviceId, 'revoke');
      await expectRefused(await signed(own), 403, 'device_revoked');
    });

    it('N62 unknown states and half records are an outage, never a pass', async () => {
      const real = bench.registry.findByKeyId(key.keyId) as unknown as Record<string, unknown>;
      const odd: unknown[] = [
        { ...real, status: 'ACTIVE' },
        { ...real, status: true },
        { ...real, keyState: 'fresh' },
        { ...real, keyId: 'x' },
        { ...real, publicKey: (await bench.newKey()).publicKey },
        {},
        true,
        undefined,
        'active',
      ];
      for (const device of odd) {
        const broken = await openWorkbench({ registry: { ...bench.registry, findByKeyId: () => device as never } });
        await expectRefused(await signed(key), 503, 'store_unavailable', broken);
        await broken.close();
      }
    });

    it('N62 a retired key never verifies, a retiring one only until its end', async () => {
      const real = (await bench.registry.findByKeyId(key.keyId))!;
      const states: [object, number][] = [
        [{ keyState: 'retired' }, 401],
        [{ keyState: 'retiring', keyRetiresAtMs: NOW_MS }, 401],
        [{ keyState: 'retiring', keyRetiresAtMs: null }, 401],
        [{ keyState: 'retiring', keyRetiresAtMs: NOW_MS + 1 }, 200],
      ];
      for (const [state, status] of states) {
        const own = await openWorkbench({ registry: { ...bench.registry, findByKeyId: () => ({ ...real, ...state }) } });
        expect((await send(own, await signed(key))).status).toBe(status);
        await own.close();
      }
    });

    it('N63 the status is not told on a bad signature', async () => {
      const own = await bench.enrolledKey();
      bench.registry.transition((bench.registry.findByKeyId(own.keyId) as { deviceId: string }).deviceId, 'revoke');
      await expectRefused({ ...(await signed(own)), body: utf8('{}') }, 401, 'signature_invalid');
    });

    it('N64 revoked between load and claim: looked at again, and refused', async () => {
      let deviceId = '';
      let claims = 0;
      const own: Workbench = await openWorkbench({
        replayStore: {
          claim: async () => {
            claims += 1;
            own.registry.transition(deviceId, 'revoke');
            return true;
          },
        },
      });
      const device = await own.enrolledKey();
      ({ deviceId } = own.registry.findByKeyId(device.keyId) as { deviceId: string });
      await expectRefused(await signed(device), 403, 'device_revoked', own);
      expect({ claims, passed: own.passed.length }).toEqual({ claims: 1, passed: 0 });
      await own.close();
    });

    it('N65 an unknown key and a bad signature get one answer, at the price of one signature check', async () => {
      const primitives = nodePrimitives();
      let checks = 0;
      const own = await openWorkbench({ primitives: { ...primitives, verify: (...given) => ((checks += 1), primitives.verify(...given)) } });
      const enrolled = await own.enrolledKey();
      const unknown = await signed(key);
      const bad = withHeader(await signed(enrolled), SIGNATURE, valueOf(unknown, SIGNATURE));
      const counted = async (request: WireRequest): Promise<{ answer: WireAnswer; checks: number }> => {
        checks = 0;
        return { answer: await send(own, request), checks };
      };
      const [first, second] = [await counted(unknown), await counted(bad)];
      expect([first.checks, second.checks]).toEqual([1, 1]);
      expect(first.answer).toMatchObject({ status: 401, code: 'signature_invalid' });
      expect(first.answer.body).toBe(second.answer.body);
      expect(first.answer.status).toBe(second.answer.status);
      const names = ({ answer }: { answer: WireAnswer }): string[] => [...answer.headers.keys()].toSorted();
      expect(names(first)).toEqual(names(second));
      await own.close();
    });

    it('an address that is not on an allowlist', async () => {
      const closed = await openWorkbench({ policy: { authorities: [AUTHORITY], ipAllowlist: ['10.0.0.0/8', '::1'] } });
      await expectRefused(await signed(await closed.enrolledKey()), 403, 'ip_not_allowed', closed);
      await expectRefused(addHeader(await signed(await closed.enrolledKey()), 'x-forwarded-for', '10.1.1.1'), 403, 'ip_not_allowed', closed);
      await closed.close();
      const open = await openWorkbench({ policy: { authorities: [AUTHORITY], ipAllowlist: ['127.0.0.0/8'] } });
      await expectAccepted(await signed(await open.enrolledKey()), open);
      await open.close();
    });
  });

  describe('limits', () => {
    it('a device over its limit is told when to come back, and its nonces are not stored', async () => {
      let claims = 0;
      const store = memoryReplayStore({ clock: { nowMs: () => NOW_MS }, maxFutureSeconds: 60, startedAtMs: 0 });
      const counting: ReplayStore = { claim: (...claim) => ((claims += 1), store.claim(...claim)), maxFutureSeconds: 60 };
      const limited = await openWorkbench({ replayStore: counting, policy: { authorities: [AUTHORITY], requestsPerMinute: 3 } });
      const own = await limited.enrolledKey();
      for (let i = 0; i < 3; i += 1) await expectAccepted(await signed(own), limited);
      const answer = await send(limited, await signed(own));
      expect(answer).toMatchObject({ status: 429, code: 'rate_limited' });
      expect(answer.headers.get('retry-after')).toMatch(/^[1-9][0-9]*$/);
      expect(answer.headers.get('ratelimit')).toMatch(/^"default";r=0;t=[0-9]+$/);
      expect(claims).toBe(3);
      await expectAccepted(await signed(await limited.enrolledKey()), limited);
      await limited.close();
    });

    it('naming the key id of a device does not use up its limit', async () => {
      const limited = await openWorkbench({ policy: { authorities: [AUTHORITY], requestsPerMinute: 2 } });
      const own = await limited.enrolledKey();
      for (let i = 0; i < 10; i += 1) {
        await expectRefused(withHeader(await signed(key), 'x-keyguard-key-id', own.keyId), 401, 'signature_invalid', limited);
      }
      await expectAccepted(await signed(own), limited);
      await limited.close();
    });

    it('an address over its limit is refused before anything is verified', async () => {
      const limited = await openWorkbench({ ipLimiter: memoryRateLimiter({ perMinute: 2 }) });
      const own = await limited.enrolledKey();
      await expectAccepted(await signed(own), limited);
      await expectAccepted(await signed(own), limited);
      await expectRefused(await signed(own), 429, 'rate_limited', limited);
      await limited.close();
    });
  });

  it('tells nothing that a peer must not know, and everything to the audit log', async () => {
    const own = await openWorkbench();
    const stranger = await own.newKey();
    const answer = await send(own, await signed(stranger, { target: '/proxy/a?secret=1' }));
    expect(answer.body).not.toMatch(/unknown key/);
    expect(own.rejections).toHaveLength(1);
    expect(own.rejections[0]).toMatchObject({ keyId: stranger.keyId, deviceId: null, method: 'POST', path: '/proxy/a', error: { detail: 'unknown key' } });
    expect(JSON.stringify(own.rejections[0])).not.toContain('secret');
    await own.close();
  });
}
