/**
 * The client of an application: enrolls this device once, then signs every request inside `fetch`. It sends signatures to one
 * origin only and follows no redirect. It never sees a provider key, and the device key never leaves the {@link KeyStore}.
 *
 * @see docs/spec/request-signing.md
 */
import type { Carriage, SignatureTag } from './canonical.ts';
import { hasCode, RejectedError, UnavailableError, UsageError, type RejectionCode } from './errors.ts';
import type { Clock, DeviceStatus, KeyStore, Primitives, Random, SigningKey } from './seams.ts';
import { createSigner, type Signer } from './sign.ts';
import { systemClock } from './system.ts';

const MAX_CLOCK_CORRECTION_MS = 24 * 60 * 60 * 1000;
const CLOCK_REFUSED: RejectionCode = 'timestamp_out_of_window';
const SCHEME = /^[a-z][a-z0-9+.-]*:/i;
const HTTP = /^https?:/i;
// WHATWG URLs leave these as they are in a path, where the protocol's grammar does not know them.
const TO_ENCODE = /[[\]|^]/g;

export interface KeyGuardClientOptions {
  /** The origin of the KeyGuard server, for instance `https://keyguard.example.com`. Only requests to it are signed. */
  readonly origin: string;
  /** Where this device keeps its key. */
  readonly keyStore: KeyStore;
  /** The name of the key in the store; by default the server's `host[:port]`, so that each server knows another key. */
  readonly keyName?: string;
  /** Where the server mounts enrollment. Default `/api/keyguard`. */
  readonly basePath?: string;
  /** How signatures travel; it must be what the server's policy takes. Default `headers`. */
  readonly carriage?: Carriage;
  /** Default: the platform's `fetch` at the time of the call. */
  readonly fetch?: typeof globalThis.fetch;
  readonly clock?: Clock;
  readonly random?: Random;
  readonly primitives?: Pick<Primitives, 'sha256'>;
}

export interface EnrollOptions {
  /** The one-time code that an administrator made for this device. */
  readonly code?: string | undefined;
  /** What people call this device: 1 to 64 characters. */
  readonly label?: string | undefined;
  /** A keyed digest of the device's signals, 43 base64url characters. A risk signal, never an identity. */
  readonly fingerprint?: string | undefined;
}

/** What the server knows of this device. */
export interface EnrolledDevice {
  readonly deviceId: string;
  /** Its first twelve characters are what a person compares before approving a device. */
  readonly keyId: string;
  /** Only `active` devices may call. */
  readonly status: DeviceStatus;
}

export class KeyGuardClient {
  readonly #origin: string;
  readonly #base: string;
  readonly #keyStore: KeyStore;
  readonly #keyName: string;
  readonly #options: KeyGuardClientOptions;
  readonly #clock: Clock;
  #clockCorrectionMs = 0;

  /** @throws UsageError `invalid_option` */
  constructor(options: KeyGuardClientOptions) {
    let url: URL;
    try {
      url = new URL(options.origin);
    } catch (cause) {
      throw new UsageError('invalid_option', 'origin must be an absolute URL such as https://keyguard.example.com.', { cause });
    }
    if (!HTTP.test(url.protocol) || url.pathname !== '/' || url.search !== '' || url.hash !== '' || url.username !== '' || url.password !== '') {
      throw new UsageError('invalid_option', 'origin must be http(s)://host[:port] and nothing more; a path belongs into basePath.');
    }
    this.#origin = url.origin;
    this.#base = `${url.origin}${options.basePath ?? '/api/keyguard'}`;
    this.#keyStore = options.keyStore;
    this.#keyName = options.keyName ?? url.host;
    this.#options = options;
    const clock = options.clock ?? systemClock;
    this.#clock = { nowMs: () => clock.nowMs() + this.#clockCorrectionMs };
  }

  /**
   * Enrolls this device, making its key if it has none. Safe to call at every start and after a lost answer: a key that the
   * server knows already is left as it is, and its present state is returned.
   * @throws RejectedError `enrollment_rejected` (unknown, used or expired code), `rate_limited`, …
   * @throws UnavailableError `server_unavailable`
   */
  async enroll(options: EnrollOptions = {}): Promise<EnrolledDevice> {
    const kept = await this.#keyStore.get(this.#keyName);
    if (kept !== null) {
      try {
        return await this.#status(kept);
      } catch (error) {
        // Not known there: its enrollment never arrived.
        if (!hasCode(error, 'signature_invalid')) throw error;
      }
    }
    const key = kept ?? (await this.#keyStore.getOrCreate(this.#keyName));
    const { crv, kty, x, y } = key.publicKey;
    const { code, label, fingerprint } = options;
    const body = JSON.stringify({ jwk: { crv, kty, x, y }, code, label, fingerprint });
    const request = new Request(`${this.#base}/enroll`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    });
    const response = await this.#send(request, {}, key, 'keyguard-enroll-v1');
    if (response.ok) return readDevice(response, key);
    const refusal = await readRefusal(response);
    if (refusal.code === 'key_exists') return this.#status(key);
    throw refusal;
  }

  /**
   * Asks the server for this device's present state, whatever it is.
   * @throws UsageError `not_enrolled` when there is no key here
   * @throws RejectedError `signature_invalid` when the server does not know the key
   * @throws UnavailableError `server_unavailable`
   */
  async status(): Promise<EnrolledDevice> {
    return this.#status(await this.#demandKey());
  }

  /** Forgets this device's key for good. After a revocation this is the way to enroll again, as a new device. */
  async forget(): Promise<void> {
    await this.#keyStore.delete(this.#keyName);
  }

  /**
   * A `fetch` that signs. Hand it to an SDK (`fetch: guard.fetch`); it may be detached from the client. Every call, so every
   * retry of an SDK, is signed anew; a clock that is off is corrected once per call by what the server says. URLs that are not
   * HTTP(S) pass through untouched.
   * @throws UsageError `origin_not_allowed`, `not_enrolled`, `target_unsupported`, `header_unsupported`
   */
  readonly fetch: typeof globalThis.fetch = async (input, init) => {
    const isRequest = input instanceof Request;
    const url = isRequest ? input.url : String(input);
    if (SCHEME.test(url) && !HTTP.test(url)) return this.#fetch(input, init);
    return this.#send(new Request(input, init), init ?? {}, await this.#demandKey(), 'keyguard-v1');
  };

  async #demandKey(): Promise<SigningKey> {
    const key = await this.#keyStore.get(this.#keyName);
    if (key === null) throw new UsageError('not_enrolled', 'This device has no key yet: call enroll() with an enrollment code first.');
    return key;
  }

  async #status(key: SigningKey): Promise<EnrolledDevice> {
    const response = await this.#send(new Request(`${this.#base}/status`), {}, key, 'keyguard-v1');
    if (response.ok) return readDevice(response, key);
    throw await readRefusal(response);
  }

  async #send(request: Request, init: RequestInit, key: SigningKey, tag: SignatureTag): Promise<Response> {
    const url = new URL(request.url);
    if (url.origin !== this.#origin) {
      throw new UsageError('origin_not_allowed', `This client signs for ${this.#origin} only, so it does not send a request to ${url.origin}.`);
    }
    url.hash = '';
    const path = url.pathname.replace(TO_ENCODE, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
    const target = path + url.search;
    const method = request.method.toUpperCase();
    const body = new Uint8Array(await request.arrayBuffer());
    const sign = this.#signer(key);
    const attempt = async (): Promise<Response> => {
      const headers = new Headers(request.headers);
      const signature = await sign({ method, authority: url.host, target, headers, body }, tag);
      for (const [name, value] of Object.entries(signature)) headers.set(name, value);
      return this.#fetch(this.#origin + target, {
        ...init,
        method,
        headers,
        // An explicit null overrides the body of `init`.
        body: body.length > 0 ? body : null,
        signal: request.signal,
        redirect: 'error',
        credentials: 'omit',
      });
    };
    const response = await attempt();
    if (!(await this.#correctClock(response))) return response;
    await response.body?.cancel();
    return attempt();
  }

  #signer(key: SigningKey): Signer<Carriage> {
    const { carriage, random, primitives } = this.#options;
    return createSigner({ key, clock: this.#clock, ...(carriage && { carriage }), ...(random && { random }), ...(primitives && { primitives }) });
  }

  #fetch(input: RequestInfo | URL, init?: RequestInit): Promise<Response> {
    return (this.#options.fetch ?? globalThis.fetch)(input, init);
  }

  /** Whether the server refused the time and told its own; the correction stays for the requests to come. */
  async #correctClock(response: Response): Promise<boolean> {
    const time = response.headers.get('x-keyguard-time');
    if (response.status !== 401 || time === null || !/^[1-9][0-9]{9}$/.test(time)) return false;
    // Another 401 on this origin, an upstream's for instance, must not move the clock. A proxy names the code in its dialect.
    const { code, error } = await readJson(response.clone());
    if (code !== CLOCK_REFUSED && (error as { code?: unknown } | undefined)?.code !== CLOCK_REFUSED) return false;
    const own = this.#clock.nowMs() - this.#clockCorrectionMs;
    const correction = Number(time) * 1000 - own;
    if (Math.abs(correction) > MAX_CLOCK_CORRECTION_MS) return false;
    this.#clockCorrectionMs = correction;
    return true;
  }
}

async function readJson(response: Response): Promise<Record<string, unknown>> {
  try {
    const value: unknown = await response.json();
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}

// The key id is our own and not what the answer says: people compare it to see that nobody stands between.
async function readDevice(response: Response, { keyId }: SigningKey): Promise<EnrolledDevice> {
  const answer = await readJson(response);
  const { device_id: deviceId, status } = answer;
  if (typeof deviceId !== 'string' || answer['key_id'] !== keyId || typeof status !== 'string') {
    throw new UnavailableError('server', 'The server answered with something other than this device: is this a KeyGuard server?', {
      code: 'server_unavailable',
    });
  }
  return { deviceId, keyId, status: status as DeviceStatus };
}

async function readRefusal(response: Response): Promise<RejectedError | UnavailableError> {
  const { code, detail } = await readJson(response);
  const seconds = Number(response.headers.get('retry-after') ?? Number.NaN);
  const retry = Number.isFinite(seconds) ? { retryAfterMs: seconds * 1000 } : {};
  if (typeof code !== 'string' || response.status >= 500) {
    return new UnavailableError('server', `The server answered ${response.status}.`, { code: 'server_unavailable', ...retry });
  }
  const message = typeof detail === 'string' ? detail : `The server refused: ${code}.`;
  return new RejectedError(code as RejectionCode, message, retry);
}
