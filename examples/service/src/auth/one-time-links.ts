/**
 * Tokens that are handed over once and let somebody do one thing: 256 random bits, shown to who made them and kept as a keyed hash,
 * beside a MAC over what they allow.
 */
import { randomBytes } from 'node:crypto';
import type { RateLimiter } from '@keyguard/core/seams';
import { isIntact, rowMac, tampered, type RowField, type RowMacKey } from '@keyguard/storage-node/postgres';
import { ipBucket } from '@keyguard/server-verifier/ip';
import { HttpProblem } from '../http/problems.ts';
import type { KeyedHash } from '../keys/hierarchy.ts';
import { tooManyRequests } from './door.ts';

const SEAM = 'one_time_links';

export interface LinkKind {
  /** The table, which is in every MAC and every hash. */
  readonly table: string;
  /** How its tokens begin, so that a person sees what they are for. */
  readonly prefix: string;
}

export interface OneTimeLinks {
  newToken(): { readonly token: string; readonly tokenHash: string };
  /** The hash of a token (untrusted); `null` for what cannot be one. */
  hashOf(token: string): string | null;
  /** The MAC of a new row. */
  seal(fields: readonly RowField[]): Promise<{ readonly macKeyId: string; readonly mac: Uint8Array }>;
  /** @throws UnavailableError for a row that does not bear its MAC */
  demandIntact(fields: readonly RowField[], stored: { readonly macKeyId: string; readonly mac: Uint8Array }): Promise<void>;
}

export function oneTimeLinks({ table, prefix }: LinkKind, { hash, rowMacKey }: { readonly hash: KeyedHash; readonly rowMacKey: RowMacKey }): OneTimeLinks {
  const pattern = new RegExp(`^${prefix}[A-Za-z0-9_-]{43}$`);
  const hashOf = (token: string): string => hash(`${table}\0${token}`);
  return {
    newToken() {
      const token = prefix + randomBytes(32).toString('base64url');
      return { token, tokenHash: hashOf(token) };
    },
    hashOf: (token) => (pattern.test(token) ? hashOf(token) : null),
    async seal(fields) {
      return { macKeyId: rowMacKey.keyId, mac: await rowMac(rowMacKey, table, fields) };
    },
    async demandIntact(fields, { macKeyId, mac }) {
      if (!(await isIntact(rowMacKey, table, fields, { macKeyId, mac: Uint8Array.from(mac) }))) throw tampered(SEAM, table);
    },
  };
}

/** What every token that lets nobody in is answered, whatever is wrong with it. */
export function linkInvalid(): HttpProblem {
  return new HttpProblem('link_invalid', 'This is not valid: it was used, was revoked, has expired, or never was. Ask for a new one.');
}

/** Bounds the tries of one address, of which each may cost a key derivation. @throws HttpProblem `rate_limited` */
export async function limitTries(limiter: RateLimiter, ip: string | undefined, nowMs: number): Promise<void> {
  const tries = await limiter.consume(ipBucket(ip ?? null), 1);
  if (!tries.allowed) throw tooManyRequests((tries.resetAtMs - nowMs) / 1000);
}
