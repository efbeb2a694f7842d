/** Time-based one-time codes (RFC 6238, as every authenticator reads them: SHA-1, six digits, thirty seconds). Pure. */
import { createHmac, timingSafeEqual } from 'node:crypto';

export const SECRET_BYTES = 20;
const STEP_SECONDS = 30;
const DIGITS = 6;
// One step to either side: authenticators and people are late, and clocks differ.
const TOLERATED_STEPS = 1;
const BASE32 = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ234567';

export function stepAt(timeMs: number): number {
  return Math.floor(timeMs / 1000 / STEP_SECONDS);
}

/** @param secret secret */
export function codeOfStep(secret: Uint8Array, step: number): string {
  const counter = Buffer.alloc(8);
  counter.writeBigUInt64BE(BigInt(step));
  const mac = createHmac('sha1', secret).update(counter).digest();
  const number = mac.readUInt32BE(mac[mac.length - 1]! & 0x0f) & 0x7fffffff;
  return String(number % 10 ** DIGITS).padStart(DIGITS, '0');
}

/**
 * The newest step whose code `code` (untrusted) is, among those that are tolerated at `nowMs`; `null` for none. Whoever lets
 * somebody in by it MUST claim the step, because the code stays good for a minute and a half.
 */
export function acceptedStep(secret: Uint8Array, code: string, nowMs: number): number | null {
  if (!/^[0-9]{6}$/.test(code)) return null;
  const given = Buffer.from(code, 'ascii');
  let accepted: number | null = null;
  for (let step = Math.max(0, stepAt(nowMs) - TOLERATED_STEPS); step <= stepAt(nowMs) + TOLERATED_STEPS; step += 1) {
    if (timingSafeEqual(given, Buffer.from(codeOfStep(secret, step), 'ascii'))) accepted = step;
  }
  return accepted;
}

export function toBase32(bytes: Uint8Array): string {
  let [text, held, bits] = ['', 0, 0];
  for (const byte of bytes) {
    held = ((held << 8) | byte) & 0xfff;
    bits += 8;
    for (; bits >= 5; bits -= 5) text += BASE32[(held >> (bits - 5)) & 31]!;
  }
  return bits > 0 ? text + BASE32[(held << (5 - bits)) & 31]! : text;
}

/** What a QR code shows to an authenticator. Secret: the secret is in it. */
export function otpauthUri(secret: Uint8Array, { issuer, account }: { readonly issuer: string; readonly account: string }): string {
  const query = new URLSearchParams({ secret: toBase32(secret), issuer, algorithm: 'SHA1', digits: String(DIGITS), period: String(STEP_SECONDS) });
  // Some authenticators show a plus as what it is.
  return `otpauth://totp/${encodeURIComponent(issuer)}:${encodeURIComponent(account)}?${query.toString().replaceAll('+', '%20')}`;
}
