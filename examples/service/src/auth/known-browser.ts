/**
 * Browsers in which somebody has signed in before. Their tries are counted apart from those of the rest of the world, so that who
 * guesses at a password from elsewhere cannot lock its owner out for ever. The cookie opens nothing: it chooses a counter.
 */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import type { Request } from 'express';
import type { KeyedHash } from '../keys/hierarchy.ts';

const NAME = 'keyguard.known_browser';
const LIFE_SECONDS = 180 * 24 * 60 * 60;

export interface KnownBrowsers {
  /** The id of the browser in which this account has signed in before; `null` for any other. */
  idOf(request: Request, account: string): string | null;
  /** The cookie that a browser gets with its first sign-in to an account. */
  newCookie(account: string): string;
}

export function createKnownBrowsers({ hash, isSecure }: { readonly hash: KeyedHash; readonly isSecure: boolean }): KnownBrowsers {
  const name = isSecure ? `__Secure-${NAME}` : NAME;
  const pattern = new RegExp(`(?:^|; )${name.replaceAll('.', '\\.')}=([A-Za-z0-9_-]{22})\\.([A-Za-z0-9_-]{43})(?:;|$)`);
  const macOf = (id: string, account: string): string => hash(`known-browser\0${id}\0${account}`);
  return {
    idOf(request, account) {
      const [, id, mac] = pattern.exec(request.headers.cookie ?? '') ?? [];
      if (id === undefined || mac === undefined) return null;
      return timingSafeEqual(Buffer.from(mac), Buffer.from(macOf(id, account))) ? id : null;
    },
    newCookie(account) {
      const id = randomBytes(16).toString('base64url');
      return `${name}=${id}.${macOf(id, account)}; Max-Age=${LIFE_SECONDS}; Path=/api/auth; HttpOnly; SameSite=Strict${isSecure ? '; Secure' : ''}`;
    },
  };
}
