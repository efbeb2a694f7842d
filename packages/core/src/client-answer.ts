/**
 * What a KeyGuard server answered, read as what it is: untrusted until it names our own key.
 *
 * @see docs/spec/request-signing.md sections 10 to 12
 */
import { RejectedError, UnavailableError, type RejectionCode } from './errors.ts';
import type { DeviceStatus, SigningKey } from './seams.ts';

const MAX_RETRY_SECONDS = 86_400;
const STATUSES: readonly unknown[] = ['pending', 'active', 'suspended', 'revoked'] satisfies DeviceStatus[];
const CODE = /^[a-z][a-z0-9_]{0,63}$/;
const DELAY = /^[0-9]{1,9}$/;

/** What the server knows of this device. */
export interface EnrolledDevice {
  readonly deviceId: string;
  /** Its first twelve characters are what a person compares before approving a device. */
  readonly keyId: string;
  /** Only `active` devices may call. */
  readonly status: DeviceStatus;
}

export interface DeviceAnswer {
  readonly device: EnrolledDevice;
  /** Whether the key that asked is the one to use, as far as the server says: that it was not replaced, in other words. */
  readonly isCurrent: boolean;
  /** Whether it was replaced so long ago that the server takes it for nothing but this question. */
  readonly isRetired: boolean;
}

/**
 * The device in an answer of 2xx.
 * @throws UnavailableError `server_unavailable` for anything but the device of this key
 */
export async function readDevice(response: Response, { keyId }: SigningKey): Promise<DeviceAnswer> {
  const answer = await readJson(response);
  const { device_id: deviceId, status, key_state: keyState = 'current' } = answer;
  // The key id is our own and not what the answer says: people compare it to see that nobody stands between.
  if (typeof deviceId !== 'string' || answer['key_id'] !== keyId || !STATUSES.includes(status)) {
    throw new UnavailableError('server', 'The server answered with something other than this device: is this a KeyGuard server?', {
      code: 'server_unavailable',
    });
  }
  return { device: { deviceId, keyId, status: status as DeviceStatus }, isCurrent: keyState === 'current', isRetired: keyState === 'retired' };
}

/** The error that any other answer amounts to. */
export async function readRefusal(response: Response): Promise<RejectedError | UnavailableError> {
  const { code, detail } = await readJson(response);
  const delay = response.headers.get('retry-after') ?? '';
  const retry = DELAY.test(delay) ? { retryAfterMs: Math.min(Number(delay), MAX_RETRY_SECONDS) * 1000 } : {};
  const said = typeof detail === 'string' ? detail : null;
  if (typeof code !== 'string' || !CODE.test(code) || response.status >= 500) {
    const message = `The server answered ${response.status}${said === null ? '.' : `: ${said}`}`;
    return new UnavailableError('server', message, { code: 'server_unavailable', ...retry });
  }
  const message = said ?? `The server refused: ${code}.`;
  return new RejectedError(code as RejectionCode, message, retry);
}

/** The code of a refusal with 401 that did not come through {@link readRefusal}; the response can still be read. */
export async function refusalCode(response: Response): Promise<unknown> {
  // Anything else is no refusal of ours, and may be long.
  if (response.status !== 401 || !/json/.test(response.headers.get('content-type') ?? '')) return undefined;
  const { code, error } = await readJson(response.clone());
  // A proxy names the code in the dialect of the API behind it.
  return code ?? (error as { code?: unknown } | undefined)?.code;
}

async function readJson(response: Response): Promise<Record<string, unknown>> {
  try {
    const value: unknown = await response.json();
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
