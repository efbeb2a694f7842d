/**
 * How a device comes by another key without ever being left with none. The new key is kept as pending before the server hears of
 * it, and takes the place of the old one only once the server has named it. Every answer that does not, and no answer at all, says
 * nothing of what the server did: so the server is asked, by a status that the new key signs.
 *
 * A pending key is not thrown away for a refusal, and still less for a silence: a request that was sent for it, by this program,
 * another tab or a proxy that kept it, may be carried out yet, and the device would hold no key that the server takes.
 *
 * @see docs/spec/request-signing.md sections 16 and 17; docs/decisions/0014-pending-keys.md
 */
import { toBase64, utf8 } from './bytes.ts';
import { rotationProofText } from './canonical.ts';
import { readDevice, readRefusal, type DeviceAnswer, type EnrolledDevice } from './client-answer.ts';
import type { Transport } from './client-transport.ts';
import { hasCode, isRejected, isUnavailable, UnavailableError, UsageError } from './errors.ts';
import type { KeyStore, SigningKey } from './seams.ts';

/** What lets a device replace its key. */
export interface RotateOptions {
  /** The one-time code that was made for this device; a server may let a device rotate without one. */
  readonly code?: string | undefined;
}

/** What the keys of one device need: their place, and the server that knows them. */
export interface DeviceKeys {
  readonly keyStore: KeyStore;
  readonly keyName: string;
  /** Origin and base path. */
  readonly base: string;
  readonly transport: Transport;
}

/** @throws UsageError `not_enrolled` */
export async function demandKey({ keyStore, keyName }: DeviceKeys): Promise<SigningKey> {
  const key = await keyStore.get(keyName);
  if (key === null) throw new UsageError('not_enrolled', 'This device has no key yet: call enroll() with an enrollment code first.');
  return key;
}

/** What the server says to a status signed by this key. @throws RejectedError `signature_invalid` where it does not know it */
export async function askStatus({ base, transport }: DeviceKeys, key: SigningKey): Promise<DeviceAnswer> {
  const response = await (await transport.prepare(new Request(`${base}/status`), {}, 'keyguard-v1'))(key);
  if (response.ok) return readDevice(response, key);
  throw await readRefusal(response);
}

/** What the server says to that, `unknown` where it does not know the key, or `null` where it could not say. */
async function tryStatus(keys: DeviceKeys, key: SigningKey): Promise<DeviceAnswer | 'unknown' | null> {
  try {
    return await askStatus(keys, key);
  } catch (error) {
    return hasCode(error, 'signature_invalid') ? 'unknown' : null;
  }
}

const isCurrent = (answer: DeviceAnswer | 'unknown' | null): answer is DeviceAnswer => answer !== null && answer !== 'unknown' && answer.isCurrent;

/**
 * The key to sign with now that the server takes `refused` no more, or `null` where there is none: the one that another tab
 * rotated to meanwhile, or the pending key of a rotation whose answer was lost.
 */
export async function recoverKey(keys: DeviceKeys, refused: SigningKey): Promise<SigningKey | null> {
  const { keyStore, keyName } = keys;
  const kept = await keyStore.get(keyName);
  if (kept?.keyId !== refused.keyId) return kept;
  const pending = await keyStore.getPending(keyName);
  if (pending === null || !isCurrent(await tryStatus(keys, pending))) return null;
  await keyStore.promote(keyName, pending.keyId);
  const now = await keyStore.get(keyName);
  return now?.keyId === refused.keyId ? null : now;
}

/** Replaces the key of this device; safe to call again after any outcome. */
export async function rotateKey(keys: DeviceKeys, options: RotateOptions): Promise<EnrolledDevice> {
  const { keyStore, keyName } = keys;
  const key = await demandKey(keys);
  const pending = await keyStore.getOrCreatePending(keyName);
  let failure: unknown;
  try {
    const response = await sendRotation(keys, key, pending, options);
    if (response.ok) return await promote(keys, pending, await readDevice(response, pending));
    failure = await readRefusal(response);
  } catch (error) {
    if ((error as Error).name === 'UsageError') throw error;
    failure = error;
  }
  return settle(keys, key, pending, failure);
}

async function sendRotation({ base, transport }: DeviceKeys, key: SigningKey, pending: SigningKey, { code }: RotateOptions): Promise<Response> {
  const { crv, kty, x, y } = pending.publicKey;
  const request = new Request(`${base}/rotate`, { method: 'POST', headers: { 'content-type': 'application/json' } });
  const send = await transport.prepare(request, {}, 'keyguard-rotate-v1', async (stamp) => {
    const text = rotationProofText({ oldKeyId: key.keyId, newKeyId: pending.keyId, ...stamp });
    return utf8(JSON.stringify({ jwk: { crv, kty, x, y }, proof: toBase64(await pending.sign(utf8(text))), code }));
  });
  return send(key);
}

async function promote(keys: DeviceKeys, pending: SigningKey, { device }: DeviceAnswer): Promise<EnrolledDevice> {
  if (await keys.keyStore.promote(keys.keyName, pending.keyId)) return device;
  // Another tab did, and may have gone on since.
  const kept = await demandKey(keys);
  return kept.keyId === pending.keyId ? device : (await askStatus(keys, kept)).device;
}

/** Finds out what became of a rotation that was not confirmed. @throws what stood in its way, if it did not happen */
async function settle(keys: DeviceKeys, key: SigningKey, pending: SigningKey, failure: unknown): Promise<EnrolledDevice> {
  const kept = await demandKey(keys);
  // Another tab rotated: this device has a new key, which is what was asked for.
  if (kept.keyId !== key.keyId) return (await askStatus(keys, kept)).device;
  const answer = await tryStatus(keys, pending);
  if (isCurrent(answer)) return promote(keys, pending, answer);
  // After this refusal, and after no other, no request for the pending key can be carried out any more.
  if (answer !== null && hasCode(failure, 'key_exists') && isCurrent(await tryStatus(keys, key))) {
    await keys.keyStore.discard(keys.keyName, pending.keyId);
  }
  if (isRejected(failure) || isUnavailable(failure)) throw failure;
  const message = 'The server did not say whether the key was rotated. Nothing is lost: call rotate() again, or go on; either finds out.';
  throw new UnavailableError('server', message, { code: 'server_unavailable', cause: failure });
}
