/**
 * The client of an application: enrolls this device once, then signs every request inside `fetch`, and replaces the key when it is
 * told to. It sends signatures to one origin only and follows no redirect. It never sees a provider key, and the device key never
 * leaves the {@link KeyStore}.
 *
 * @see docs/spec/request-signing.md
 */
import { readDevice, readRefusal, refusalCode, type DeviceAnswer, type EnrolledDevice } from './client-answer.ts';
import { askStatus, demandKey, recoverKey, rotateKey, type DeviceKeys, type RotateOptions } from './client-rotation.ts';
import { createTransport, type TransportOptions } from './client-transport.ts';
import { hasCode, RejectedError, UsageError } from './errors.ts';
import type { KeyStore, SigningKey } from './seams.ts';

export type { EnrolledDevice } from './client-answer.ts';
export type { RotateOptions } from './client-rotation.ts';
export type { TransportOptions } from './client-transport.ts';

const SCHEME = /^[a-z][a-z0-9+.-]*:/i;
const HTTP = /^https?:/i;

/** Which server this device signs for, and where it keeps its keys. */
export interface KeyGuardClientOptions extends TransportOptions {
  /** The origin of the KeyGuard server, for instance `https://keyguard.example.com`. Only requests to it are signed. */
  readonly origin: string;
  /** Where this device keeps its keys. */
  readonly keyStore: KeyStore;
  /**
   * The name of the key in the store; by default the server's `host[:port]`, so that each server knows another key. Two servers under
   * one origin need two names: what rotates for the one would leave the other without its key.
   */
  readonly keyName?: string;
  /** Where the server mounts the routes of devices. Default `/api/keyguard`. */
  readonly basePath?: string;
}

/** What a device says of itself when it enrolls. */
export interface EnrollOptions {
  /** The one-time code that an administrator made for this device. */
  readonly code?: string | undefined;
  /** What people call this device: 1 to 64 characters. */
  readonly label?: string | undefined;
  /** A keyed digest of the device's signals, 43 base64url characters. A risk signal, never an identity. */
  readonly fingerprint?: string | undefined;
}

/**
 * This device, as far as one server is concerned: enrolls, tells its state, replaces its key, and signs requests to that server's
 * origin.
 */
export class KeyGuardClient {
  readonly #keys: DeviceKeys;
  // While an answer is read, the Request that can abort it must live: a signal that follows another one dies with its own Request.
  readonly #requests = new WeakMap<ReadableStream, Request>();
  #rotating: Promise<EnrolledDevice> | undefined;
  #recovering: { readonly keyId: string; readonly key: Promise<SigningKey | null> } | undefined;

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
    if (typeof options.keyStore?.getOrCreate !== 'function') throw new UsageError('invalid_option', 'keyStore must be a KeyStore.');
    this.#keys = {
      keyStore: options.keyStore,
      keyName: options.keyName ?? url.host,
      base: `${url.origin}${options.basePath ?? '/api/keyguard'}`,
      transport: createTransport(url.origin, options),
    };
  }

  /**
   * Enrolls this device, making its key if it has none. Safe to call at every start and after a lost answer: a key that the
   * server knows already is left as it is, and its present state is returned.
   * @throws RejectedError `enrollment_rejected` (unknown, used or expired code), `rate_limited`, …; `signature_invalid` when the
   *   server has replaced the key by one that is not here, as where an old copy of the store was put back
   * @throws UnavailableError `server_unavailable`
   */
  async enroll(options: EnrollOptions = {}): Promise<EnrolledDevice> {
    const { keyStore, keyName, base, transport } = this.#keys;
    const kept = await keyStore.get(keyName);
    if (kept !== null) {
      let known: DeviceAnswer | undefined;
      try {
        known = await this.#ask(kept);
      } catch (error) {
        // Not known there: its enrollment never arrived.
        if (!hasCode(error, 'signature_invalid')) throw error;
      }
      if (known !== undefined) return usable(known);
    }
    const key = await keyStore.getOrCreate(keyName);
    const { crv, kty, x, y } = key.publicKey;
    const { code, label, fingerprint } = options;
    const body = JSON.stringify({ jwk: { crv, kty, x, y }, code, label, fingerprint });
    const request = new Request(`${base}/enroll`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body,
    });
    const response = await (await transport.prepare(request, {}, 'keyguard-enroll-v1'))(key);
    if (response.ok) return (await readDevice(response, key)).device;
    const refusal = await readRefusal(response);
    if (refusal.code === 'key_exists') return usable(await this.#ask(key));
    throw refusal;
  }

  /**
   * Replaces this device's key by a new one, which signs from then on. At no moment is the device left without a key that the
   * server takes: after an error, a lost answer or a crash, what is here goes on working, and the next call of any kind finds out
   * what became of the rotation. So it is safe to call again, also with a new code; a rotation that was begun is then finished.
   *
   * While one is under way in this client, a second call waits for it and gets its answer. When another tab or process rotates at
   * the same time, both end up with one and the same new key.
   * @throws RejectedError `rotation_rejected` (unknown, used or expired code, or none where one is demanded), `device_suspended`, …
   * @throws UsageError `not_enrolled`
   * @throws UnavailableError `server_unavailable`
   */
  rotate(options: RotateOptions = {}): Promise<EnrolledDevice> {
    this.#rotating ??= rotateKey(this.#keys, options).finally(() => {
      this.#rotating = undefined;
    });
    return this.#rotating;
  }

  /**
   * Asks the server for this device's present state, whatever it is.
   * @throws UsageError `not_enrolled` when there is no key here
   * @throws RejectedError `signature_invalid` when the server does not know the key, or has replaced it by one that is not here
   * @throws UnavailableError `server_unavailable`
   */
  async status(): Promise<EnrolledDevice> {
    return usable(await this.#ask(await demandKey(this.#keys)));
  }

  /** Forgets this device's keys for good. After a revocation this is the way to enroll again, as a new device. */
  async forget(): Promise<void> {
    await this.#keys.keyStore.delete(this.#keys.keyName);
  }

  /**
   * A `fetch` that signs. Hand it to an SDK (`fetch: guard.fetch`); it may be detached from the client. Every call, so every
   * retry of an SDK, is signed anew; a clock that is off is corrected once per call by what the server says, and a key that was
   * replaced meanwhile is read again once per call. URLs that are not HTTP(S) pass through untouched.
   * @throws UsageError `origin_not_allowed`, `not_enrolled`, `target_unsupported`, `header_unsupported`
   */
  readonly fetch: typeof globalThis.fetch = async (input, init) => {
    const isRequest = input instanceof Request;
    const url = isRequest ? input.url : String(input);
    const { transport } = this.#keys;
    if (SCHEME.test(url) && !HTTP.test(url)) return transport.fetch(input, init);
    const request = new Request(input, init);
    const key = await demandKey(this.#keys);
    // The caller's own signal, not that of our Request, which would be collected before a long answer ends.
    const signal = init?.signal === undefined && isRequest ? input.signal : init?.signal;
    const send = await transport.prepare(request, { ...init, signal: signal ?? null }, 'keyguard-v1');
    const response = await send(key);
    if (isRequest && response.body !== null) this.#requests.set(response.body, input);
    if ((await refusalCode(response)) !== 'signature_invalid') return response;
    const other = await this.#recover(key);
    if (other === null) return response;
    await response.body?.cancel();
    return send(other);
  };

  /** What the server says of this device: to `key`, or to the one that has taken its place. */
  async #ask(key: SigningKey): Promise<DeviceAnswer> {
    let answer: DeviceAnswer | undefined;
    let failure: unknown;
    try {
      answer = await askStatus(this.#keys, key);
      if (answer.isCurrent) return answer;
    } catch (error) {
      if (!hasCode(error, 'signature_invalid')) throw error;
      failure = error;
    }
    const other = await this.#recover(key);
    if (other !== null) return askStatus(this.#keys, other);
    if (answer === undefined) throw failure;
    return answer;
  }

  /** One at a time: a hundred calls that are refused at once ask once. */
  #recover(refused: SigningKey): Promise<SigningKey | null> {
    const { keyId } = refused;
    if (this.#recovering?.keyId !== keyId) {
      const key = recoverKey(this.#keys, refused).finally(() => {
        this.#recovering = undefined;
      });
      this.#recovering = { keyId, key };
    }
    return this.#recovering.key;
  }
}

/** The device, where the server takes the key that asked: with another one an active device is of no use. */
function usable({ device, isRetired }: DeviceAnswer): EnrolledDevice {
  if (!isRetired) return device;
  throw new RejectedError('signature_invalid', 'The key of this device was replaced by one that is not here: call forget(), and enroll again with a new code.');
}
