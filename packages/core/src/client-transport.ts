/**
 * Sends signed requests to one origin: no other origin, no redirect, no cookie. Each attempt is signed anew, and a clock that is
 * off is corrected by what the server says. Which key signs is for the caller to say, attempt by attempt.
 *
 * @see docs/spec/request-signing.md sections 6 and 8
 */
import { refusalCode } from './client-answer.ts';
import { toBase64Url } from './bytes.ts';
import type { Carriage, SignatureTag } from './canonical.ts';
import { UsageError, type RejectionCode } from './errors.ts';
import type { Bytes, Clock, Primitives, Random, SigningKey } from './seams.ts';
import { createSigner, NONCE_BYTES } from './sign.ts';
import { systemClock, webCryptoRandom } from './system.ts';

const MAX_CLOCK_CORRECTION_MS = 24 * 60 * 60 * 1000;
const CLOCK_REFUSED: RejectionCode = 'timestamp_out_of_window';
// WHATWG URLs leave these as they are in a path, where the protocol's grammar does not know them.
const TO_ENCODE = /[[\]|^]/g;

/** How signed requests leave. Every default is the platform's own. */
export interface TransportOptions {
  /** How signatures travel; it must be what the server's policy takes. Default `headers`. */
  readonly carriage?: Carriage;
  /** Default: the platform's `fetch` at the time of the call. */
  readonly fetch?: typeof globalThis.fetch;
  readonly clock?: Clock;
  readonly random?: Random;
  readonly primitives?: Pick<Primitives, 'sha256'>;
}

/** What one attempt says of itself in its headers. */
export interface Stamp {
  /** Unix seconds, as on the wire. */
  readonly timestamp: string;
  readonly nonce: string;
}

/** A request whose body is read; it can be sent again and again, by whichever key. */
export type SignedRequest = (key: SigningKey) => Promise<Response>;

export interface Transport {
  /** The `fetch` behind it, which signs nothing. */
  readonly fetch: typeof globalThis.fetch;
  /**
   * Reads a request, to be sent as `init` says; its signal is that of `init`, and not the one of `request`. A body that depends on the attempt is made by `bodyOf`, in place of that of `request`.
   * @throws UsageError `origin_not_allowed`; and when it is sent, `target_unsupported` or `header_unsupported`
   */
  prepare(request: Request, init: RequestInit, tag: SignatureTag, bodyOf?: (stamp: Stamp) => Promise<Bytes>): Promise<SignedRequest>;
}

/** @param origin as `URL.origin` spells it */
export function createTransport(origin: string, options: TransportOptions): Transport {
  const { carriage, primitives, clock: own = systemClock, random = webCryptoRandom() } = options;
  let clockCorrectionMs = 0;

  const fetch: typeof globalThis.fetch = (input, init) => (options.fetch ?? globalThis.fetch)(input, init);

  /** Whether the server refused the time and told its own; the correction stays for the requests to come. */
  async function correctClock(response: Response): Promise<boolean> {
    const time = response.headers.get('x-keyguard-time');
    if (time === null || !/^[1-9][0-9]{9}$/.test(time)) return false;
    // Another 401 on this origin, an upstream's for instance, must not move the clock.
    if ((await refusalCode(response)) !== CLOCK_REFUSED) return false;
    const correction = Number(time) * 1000 - own.nowMs();
    if (Math.abs(correction) > MAX_CLOCK_CORRECTION_MS) return false;
    clockCorrectionMs = correction;
    return true;
  }

  async function prepare(request: Request, init: RequestInit, tag: SignatureTag, bodyOf?: (stamp: Stamp) => Promise<Bytes>): Promise<SignedRequest> {
    const url = new URL(request.url);
    if (url.origin !== origin) {
      throw new UsageError('origin_not_allowed', `This client signs for ${origin} only, so it does not send a request to ${url.origin}.`);
    }
    const path = url.pathname.replace(TO_ENCODE, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
    const target = path + url.search;
    const method = request.method.toUpperCase();
    const given = new Uint8Array(await request.arrayBuffer());

    async function attempt(key: SigningKey): Promise<Response> {
      const headers = new Headers(request.headers);
      // Both are fixed before the signer asks, because a body may hold them.
      const nowMs = own.nowMs() + clockCorrectionMs;
      const nonce = random.bytes(NONCE_BYTES);
      const body = bodyOf === undefined ? given : await bodyOf({ timestamp: String(Math.floor(nowMs / 1000)), nonce: toBase64Url(nonce) });
      const clock = { nowMs: () => nowMs };
      const sign = createSigner({ key, clock, random: { bytes: () => nonce }, ...(carriage && { carriage }), ...(primitives && { primitives }) });
      const signature = await sign({ method, authority: url.host, target, headers, body }, tag);
      for (const [name, value] of Object.entries(signature)) headers.set(name, value);
      return fetch(origin + target, {
        ...init,
        method,
        headers,
        // An explicit null overrides the body of `init`.
        body: body.length > 0 ? body : null,
        redirect: 'error',
        credentials: 'omit',
      });
    }

    return async (key) => {
      const response = await attempt(key);
      if (!(await correctClock(response))) return response;
      await response.body?.cancel();
      return attempt(key);
    };
  }

  return { fetch, prepare };
}
