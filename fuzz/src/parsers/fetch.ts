/**
 * `fetch`, the door for WHATWG `Request`s: whatever URL, headers and body the runtime makes of what it was given, only the request
 * that was signed is let through, and as it was signed.
 */
import { generateKeyPair, signingKey } from '@keyguard/core/keys';
import type { Bytes, Device } from '@keyguard/core/seams';
import { createSigner } from '@keyguard/core/sign';
import { fetchDoor } from '@keyguard/server-verifier/fetch';
import { createVerifier } from '@keyguard/server-verifier/verifier';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateList, mutateText } from '../mutate.ts';
import { agree, demand, demandEqual, outcomeOf, outcomeOfLater, type Parser } from '../parser.ts';

const ORIGIN = 'https://keyguard.example.com';
const NOW_MS = 1_780_000_000_000;
const key = await signingKey(await generateKeyPair());
const device: Device = {
  deviceId: 'd-1',
  ownerId: 'u-1',
  projectId: null,
  keyId: key.keyId,
  publicKey: key.publicKey,
  keyState: 'current',
  keyRetiresAtMs: null,
  status: 'active',
  label: null,
  requestsPerMinute: null,
  ipAllowlist: null,
  allowedModels: null,
};

const allowed = { allowed: true, limit: 1, remaining: 1, resetAtMs: NOW_MS };
const limiter = { peek: () => allowed, consume: () => allowed };
const verifier = createVerifier({
  policy: { authorities: ['keyguard.example.com'] },
  registry: {
    findByKeyId: (keyId) => (keyId === key.keyId ? device : null),
    enroll: () => ({ outcome: 'rejected' }),
    rotate: () => ({ outcome: 'rejected' }),
  },
  replayStore: { claim: () => true },
  clock: { nowMs: () => NOW_MS },
  deviceLimiter: limiter,
  ipLimiter: limiter,
});
const door = fetchDoor(verifier, { ip: () => '192.0.2.1' });

interface Signed {
  readonly method: string;
  readonly target: string;
  readonly headers: readonly (readonly [string, string])[];
  readonly body: Bytes;
}

async function signed(method: string, target: string, headers: readonly (readonly [string, string])[], text: string): Promise<Signed> {
  const body = new Uint8Array(Buffer.from(text));
  const sign = createSigner({ key, clock: { nowMs: () => NOW_MS } });
  const carried = await sign({ method, authority: 'keyguard.example.com', target, headers, body });
  return { method, target, headers: [...headers, ...Object.entries(carried)], body };
}

const SIGNED = await Promise.all([
  signed('GET', '/v1/models', [], ''),
  signed('POST', '/v1/chat?stream=true', [['content-type', 'application/json'], ['openai-project', 'p']], '{"model":"m"}'),
]);

interface Given extends Signed {
  readonly url: string;
}

function mutate(random: Generator, original: Signed): Given {
  let { method, target, headers, body } = original;
  let url = ORIGIN + target;
  for (let left = random.pick([0, 1, 1, 1, 2]); left > 0; left -= 1) {
    switch (random.below(6)) {
      case 0:
        method = random.pick(['GET', 'POST', 'PUT', 'get', 'HEAD']);
        break;
      case 1:
        target = mutateText(random, target, ['//', '/../', '/./', '%2e%2e/', '%2F', '\\', '?', '#', '%00']);
        url = ORIGIN + target;
        break;
      case 2:
        url = mutateText(random, url, ['@evil.example', 'evil.example', ':443', ':8443', '//']);
        break;
      case 3:
        body = mutateBytes(random, body);
        break;
      default:
        headers = mutateList(random, headers, ([name, value]) => (random.oneIn(4) ? [mutateText(random, name), value] : [name, mutateText(random, value)]), () => random.pick([['host', 'evil.example'], ['openai-beta', 'a'], ['content-encoding', 'gzip'], ['x-keyguard-alg', 'none'], ['signature', 'x'], ['accept', 'a']] as const));
    }
  }
  return { method, target, headers, body, url };
}

/** The request that a runtime makes of it; `null` where it makes none. */
function requestOf({ method, url, headers, body }: Given): Request | null {
  const made = outcomeOf(() => {
    try {
      return new Request(url, { method, headers: headers.map(([name, value]): [string, string] => [name, value]), ...(body.length > 0 && method !== 'GET' && method !== 'HEAD' && { body }) });
    } catch {
      return null;
    }
  });
  return made.accepted ? made.value : null;
}

export const FETCH: readonly Parser[] = [
  {
    name: 'fetch.fetchDoor',
    async try(random) {
      const original = random.pick(SIGNED);
      const given = mutate(random, original);
      const request = requestOf(given);
      if (request === null) return 'refused';
      const { pathname, search } = new URL(request.url);
      const outcome = await outcomeOfLater(() => door.verify(request));
      const verified = outcome.accepted ? outcome.value.verified : null;
      if (verified !== null) {
        demandEqual([verified.method, verified.path + (verified.query === '' ? '' : `?${verified.query}`)], [original.method, original.target], 'what was let through');
        demand(Buffer.compare(verified.body, original.body) === 0, 'let another body through');
        demand(pathname + search === original.target, 'let another URL through');
      } else {
        demand(outcome.accepted && outcome.value.refusal instanceof Response, 'gave no answer');
        const status = outcome.accepted ? outcome.value.refusal!.status : 0;
        demand(status >= 400 && status < 500, `answered ${status}`);
      }
      const isOriginal = given.url === ORIGIN + original.target && given.method === original.method && given.headers === original.headers && given.body === original.body;
      return isOriginal ? agree(verified !== null, true) : verified !== null ? 'accepted' : 'refused';
    },
  },
];
