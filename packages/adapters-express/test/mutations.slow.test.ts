/**
 * 100,000 signed requests, each with a few bytes changed in its method, target, covered headers, body or signature: none may be
 * accepted. A fifth as many again come in the other carriage. Most go straight to the verifier; some go over a real socket as bytes.
 * The seed is printed, and `KEYGUARD_SEED=… ` repeats a run; `KEYGUARD_MUTATIONS=…` sets another number.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { splitTarget, type Carriage } from '@keyguard/core/canonical';
import { hasCode, isRejected } from '@keyguard/core/errors';
import { memoryReplayStore } from '@keyguard/core/memory';
import type { Bytes, SigningKey } from '@keyguard/core/seams';
import { createVerifier, type Verifier } from '@keyguard/server-verifier';
import { AUTHORITY, NOW_MS, send, wireIn, type WireRequest, type Workbench } from './wire.ts';

const MUTATIONS = Number(process.env['KEYGUARD_MUTATIONS'] ?? 100_000);
const OVER_SOCKETS = 2000;
const SHARES: readonly [carriage: Carriage, share: number][] = [
  ['headers', 1],
  ['rfc9421', 1 / 5],
];
const seed = Number(process.env['KEYGUARD_SEED'] ?? Math.floor(Math.random() * 2 ** 31));

/** A small seeded generator (mulberry32): enough to choose bytes, and repeatable. */
function generator(state: number): (below: number) => number {
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

const random = generator(seed);

function mutateBytes(bytes: Uint8Array): Uint8Array {
  const at = random(bytes.length + 1);
  switch (random(4)) {
    case 0: // insert
      return Uint8Array.of(...bytes.subarray(0, at), random(256), ...bytes.subarray(at));
    case 1: // delete
      return bytes.length === 0 ? Uint8Array.of(random(256)) : Uint8Array.of(...bytes.subarray(0, Math.min(at, bytes.length - 1)), ...bytes.subarray(Math.min(at, bytes.length - 1) + 1));
    case 2: // swap two neighbours
      if (bytes.length > 1) {
        const copy = bytes.slice();
        const i = random(bytes.length - 1);
        [copy[i], copy[i + 1]] = [copy[i + 1]!, copy[i]!];
        return copy;
      }
      return Uint8Array.of(...bytes, random(256));
    default: {
      const copy = bytes.slice();
      if (copy.length > 0) copy[random(copy.length)]! ^= 1 + random(255);
      return copy;
    }
  }
}

function mutateText(text: string): string {
  return Buffer.from(mutateBytes(Buffer.from(text, 'latin1'))).toString('latin1');
}

function mutate(request: WireRequest): WireRequest {
  const part = random(5 + request.headers.length);
  if (part === 0) return { ...request, method: mutateText(request.method) };
  if (part <= 2) return { ...request, target: mutateText(request.target) };
  if (part <= 4) return { ...request, body: mutateBytes(request.body) as Bytes };
  const chosen = part - 5;
  return { ...request, headers: request.headers.map(([name, value], i) => [name, i === chosen ? mutateText(value) : value]) };
}

/** What a verifier sees of a request; two with the same image are the same request. */
function image(request: WireRequest): string {
  const target = splitTarget(request.target);
  const headers = request.headers.filter(([name]) => name !== 'host');
  return JSON.stringify([request.method, target ?? request.target, headers, Buffer.from(request.body).toString('hex')]);
}

/**
 * What an HTTP parser drops and nobody behind it sees: white space around a header's value, empty lines before the request line,
 * further spaces in it (RFC 9112 sections 2.2 and 3, RFC 9110 section 5.5). Where only such was added, nothing was changed.
 */
function trimmed(request: WireRequest): WireRequest {
  return {
    ...request,
    method: request.method.replace(/^[\r\n]+| +$/g, ''),
    target: request.target.replace(/^ +| +$/g, ''),
    headers: request.headers.map(([name, value]) => [name, value.replace(/^[ \t]+|[ \t]+$/g, '')]),
  };
}

describe.each(SHARES)('in the carriage %s', (carriage, share) => {
  const { openWorkbench, signed } = wireIn(carriage);
  const [mutations, overSockets] = [Math.ceil(MUTATIONS * share), OVER_SOCKETS * share];
  let bench: Workbench;
  let key: SigningKey;
  let verifier: Verifier;
  let originals: WireRequest[];

  beforeAll(async () => {
    bench = await openWorkbench();
    key = await bench.enrolledKey();
    verifier = createVerifier({
      registry: bench.registry,
      clock: { nowMs: () => bench.time.nowMs },
      replayStore: memoryReplayStore({ clock: { nowMs: () => NOW_MS }, maxFutureSeconds: 60, startedAtMs: 0 }),
      policy: { authorities: [AUTHORITY], carriage, requestsPerMinute: 1_000_000_000, requestsPerMinutePerIp: 1_000_000_000 },
    });
    originals = await Promise.all(
      Array.from({ length: 50 }, (_, i) =>
        signed(key, {
          method: i % 5 === 0 ? 'GET' : 'POST',
          target: `/proxy/openai/v1/chat/completions${i % 3 === 0 ? '' : `?a=${i}&b=%7E`}`,
          headers: [['content-type', 'application/json'], ...(i % 2 === 0 ? [['idempotency-key', `k-${i}`] as [string, string]] : []), ...(i % 7 === 0 ? [['openai-project', 'p'] as [string, string]] : [])],
          body: i % 5 === 0 ? '' : JSON.stringify({ model: 'm', i }),
        }),
      ),
    );
  });
  afterAll(() => bench.close());

  function verify({ method, target, headers, body }: WireRequest): Promise<unknown> {
    return verifier.verify({ method, target, rawHeaders: headers.flat(), ip: '127.0.0.1', body: () => body });
  }

  it(`accepts none of ${mutations} mutated requests (seed ${seed})`, { timeout: 240_000 }, async () => {
    console.info(`mutations: seed ${seed}, ${mutations} to the verifier, ${overSockets} over sockets`);
    const refusals: Record<string, number> = {};
    let accepted = 0;
    for (let done = 0; done < mutations; ) {
      const original = originals[random(originals.length)]!;
      const mutated = mutate(original);
      if (image(mutated) === image(original)) continue;
      done += 1;
      try {
        await verify(mutated);
        accepted += 1;
        console.error('accepted', image(mutated), 'of', image(original));
      } catch (error) {
        if (!isRejected(error) || hasCode(error, 'replay_detected')) throw error;
        refusals[error.code] = (refusals[error.code] ?? 0) + 1;
      }
    }
    console.info('refused as', refusals);
    expect(accepted).toBe(0);
    // Every original is still unused: no mutation claimed its nonce.
    for (const original of originals) await verify(original);
  });

  it('accepts none of them over real sockets either', { timeout: 120_000 }, async () => {
    for (let done = 0; done < overSockets; ) {
      const batch = Array.from({ length: 20 }, () => {
        const original = originals[random(originals.length)]!;
        return { original, mutated: mutate(original) };
      }).filter(({ original, mutated }) => image(trimmed(mutated)) !== image(original));
      done += batch.length;
      const answers = await Promise.all(batch.map(({ mutated }) => send(bench, mutated)));
      for (const { status } of answers) expect([0, 400, 401, 404, 408, 413, 414, 415, 431]).toContain(status);
    }
    expect(bench.passed).toHaveLength(0);
  });
});
