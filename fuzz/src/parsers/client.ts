/** `client`: what a server, or whoever stands in its place, answers. The client believes of it what it can check, and no more. */
import { KeyGuardClient, type EnrolledDevice } from '@keyguard/core/client';
import type { JsonValue, KeyStore, SigningKey } from '@keyguard/core/seams';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateJson, mutateText } from '../mutate.ts';
import { agree, demand, demandEqual, outcomeOfLater, type Outcome, type Parser } from '../parser.ts';

const NOW_MS = 1_780_000_000_000;
const ORIGIN = 'https://keyguard.example.com';
const [OLD, NEW, OTHER] = ['A', 'B', 'C'].map((letter) => letter.repeat(42).concat('A')) as [string, string, string];

function keyOf(keyId: string): SigningKey {
  return { keyId, publicKey: { crv: 'P-256', kty: 'EC', x: 'A'.repeat(43), y: 'A'.repeat(43) }, sign: async () => new Uint8Array(64) };
}

const STATUSES = ['pending', 'active', 'suspended', 'revoked'];
const CODES = ['signature_invalid', 'device_revoked', 'timestamp_out_of_window', 'rate_limited', 'key_exists', 'rotation_rejected', 'unknown_code'];
const TIMES = ['1780000000', '1780000300', '1779000000', '0', '-1', '1e9', '17800000000', ' 1780000000', 'NaN', '1780086399', '1780086401'] as const;
const DELAYS = ['1', '0', '-5', '1e9', '0x10', 'Wed, 21 Oct 2026 07:28:00 GMT', '', '99999999999999999999', '3.5'] as const;

interface Exchange {
  /** Which key signed, by its id. */
  readonly signer: string;
  readonly path: string;
  readonly seconds: number;
  readonly status: number;
  readonly headers: Record<string, string>;
  readonly body: Uint8Array<ArrayBuffer>;
}

function answer(random: Generator): Pick<Exchange, 'status' | 'headers' | 'body'> {
  const isGood = random.oneIn(2);
  const good = { device_id: 'd-1', key_id: random.pick([OLD, OLD, NEW, NEW, OTHER]), status: random.pick(STATUSES), label: null, ...(random.oneIn(2) && { key_state: random.pick(['current', 'retiring', 'retired', 'x']) }) };
  const problem = { title: 'x', status: 401, detail: 'Some detail.', code: random.pick(CODES), error: { code: random.pick(CODES) } };
  const text = JSON.stringify(random.oneIn(2) ? (isGood ? good : problem) : mutateJson(random, (isGood ? good : problem) as JsonValue));
  const body = random.oneIn(8) ? mutateBytes(random, Buffer.from(text)) : new Uint8Array(Buffer.from(random.oneIn(8) ? mutateText(random, text) : text));
  const headers: Record<string, string> = { 'content-type': random.pick(['application/json', 'application/problem+json', 'text/html']) };
  if (random.oneIn(3)) headers['x-keyguard-time'] = random.pick(TIMES);
  if (random.oneIn(3)) headers['retry-after'] = random.pick(DELAYS);
  return { status: isGood ? random.pick([200, 201, 200, 200, 403]) : random.pick([400, 401, 401, 403, 404, 409, 429, 500, 503]), headers, body };
}

function jsonOf({ body }: Exchange): Readonly<Record<string, unknown>> {
  try {
    // The Fetch standard reads JSON as UTF-8, drops a byte-order mark, and replaces what is none.
    const value: unknown = JSON.parse(new TextDecoder().decode(body));
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

/** Whether it is an answer of 2xx that names the device under `keyId`. */
function names(exchange: Exchange, keyId: string): boolean {
  const { device_id: deviceId, key_id: named, status } = jsonOf(exchange);
  return exchange.status < 300 && typeof deviceId === 'string' && named === keyId && STATUSES.includes(status as string);
}

const isCurrent = (exchange: Exchange): boolean => [undefined, 'current'].includes(jsonOf(exchange)['key_state'] as string | undefined);

interface Life {
  readonly exchanges: readonly Exchange[];
  readonly outcome: Outcome<EnrolledDevice>;
  readonly kept: string;
  readonly pending: string | null;
  readonly discarded: boolean;
}

/** Calls `call` of a client that has the key OLD and, where `begun`, the pending key NEW. */
async function live(random: Generator, begun: boolean, call: (client: KeyGuardClient) => Promise<EnrolledDevice>): Promise<Life> {
  const exchanges: Exchange[] = [];
  let [kept, discarded] = [OLD, false];
  let pending: string | null = begun ? NEW : null;
  const keyStore: KeyStore = {
    getOrCreate: async () => keyOf(kept),
    get: async () => keyOf(kept),
    getOrCreatePending: async () => keyOf((pending = NEW)),
    getPending: async () => (pending === null ? null : keyOf(pending)),
    promote: async (_, keyId) => {
      const isPending = keyId === pending;
      if (isPending) [kept, pending] = [keyId, null];
      return isPending;
    },
    discard: async (_, keyId) => {
      const isPending = keyId === pending;
      if (isPending) [pending, discarded] = [null, true];
      return isPending;
    },
    delete: async () => {},
  };
  const fetch = async (url: string, init: RequestInit): Promise<Response> => {
    const headers = init.headers as Headers;
    const given = answer(random);
    exchanges.push({ signer: headers.get('x-keyguard-key-id')!, path: new URL(url).pathname, seconds: Number(headers.get('x-keyguard-timestamp')), ...given });
    return new Response(given.body, given);
  };
  const client = new KeyGuardClient({ origin: ORIGIN, keyStore, fetch: fetch as typeof globalThis.fetch, clock: { nowMs: () => NOW_MS }, primitives: { sha256: () => new Uint8Array(32) } });
  const outcome = await outcomeOfLater(
    () =>
      call(client).catch((error: Error & { code?: unknown; retryAfterMs?: unknown }) => {
        const { name, code, retryAfterMs } = error;
        demand(retryAfterMs === undefined || (Number.isSafeInteger(retryAfterMs) && (retryAfterMs as number) >= 0 && (retryAfterMs as number) <= 86_400_000), 'a retry at no time');
        if (name !== 'RejectedError') throw error;
        const isTold = exchanges.some((exchange) => exchange.status >= 300 && exchange.status < 500 && jsonOf(exchange)['code'] === code);
        // What the client says by itself of a key that the server has replaced, and that is of no use any more.
        const isReplaced = code === 'signature_invalid' && exchanges.some((exchange) => names(exchange, exchange.signer) && jsonOf(exchange)['key_state'] === 'retired');
        demand((isTold || isReplaced) && /^[a-z][a-z0-9_]{0,63}$/.test(String(code)), 'told as a refusal what is none');
        // Which codes there are is the server's to say.
        Object.defineProperty(error, 'code', { value: 'any' });
        throw error;
      }),
    'RejectedError any',
    'UnavailableError server_unavailable',
  );
  demand(exchanges.length <= 10 && exchanges.every(({ seconds }) => Math.abs(seconds - NOW_MS / 1000) <= 86_400), 'moved its clock by more than a day, or asked without end');
  return { exchanges, outcome, kept, pending, discarded };
}

/** What must hold of the keys, whatever was answered: the device is never left with a key that the server has not named. */
function demandKeys({ exchanges, outcome, kept, discarded }: Life): void {
  if (kept === NEW) demand(exchanges.some((exchange) => names(exchange, NEW) && (exchange.path.endsWith('/rotate') || (exchange.signer === NEW && isCurrent(exchange)))), 'took up a key that the server had not named');
  if (discarded) {
    const isRefused = exchanges.some((exchange) => exchange.path.endsWith('/rotate') && jsonOf(exchange)['code'] === 'key_exists' && exchange.status < 500);
    const isKnown = exchanges.some((exchange) => exchange.signer === OLD && names(exchange, OLD) && isCurrent(exchange));
    demand(isRefused && isKnown, 'threw a pending key away that may be the only one yet');
  }
  if (!outcome.accepted) return;
  const { keyId, deviceId, status } = outcome.value;
  const said = exchanges.filter((exchange) => names(exchange, keyId)).map(jsonOf);
  demand(said.some((told) => told['device_id'] === deviceId && told['status'] === status), 'told of a device that the server did not name');
}

export const CLIENT: readonly Parser[] = [
  {
    name: 'client.status',
    async try(random) {
      const life = await live(random, random.oneIn(2), (client) => client.status());
      demandKeys(life);
      const { exchanges, outcome } = life;
      if (exchanges.length > 1) return outcome.accepted ? 'accepted' : 'refused';
      if (outcome.accepted) demandEqual(outcome.value.keyId, OLD, 'the key');
      return agree(outcome.accepted, names(exchanges[0]!, OLD) && jsonOf(exchanges[0]!)['key_state'] !== 'retired');
    },
  },
  {
    name: 'client.rotate',
    async try(random) {
      const life = await live(random, random.oneIn(2), (client) => client.rotate({ code: 'c' }));
      demandKeys(life);
      if (life.outcome.accepted) demandEqual([life.outcome.value.keyId, life.kept], [NEW, NEW], 'the new key');
      return life.outcome.accepted ? 'accepted' : 'refused';
    },
  },
];
