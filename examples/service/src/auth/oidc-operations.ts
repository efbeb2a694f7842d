/** `/api/auth/oidc`: to the provider, and back with a session. A browser goes both ways by itself, so both are GET. */
import * as z from 'zod';
import type { Clock, RateLimiter } from '@keyguard/core/seams';
import type { Request } from 'express';
import { operation, type Operation } from '../http/operations.ts';
import { HttpProblem } from '../http/problems.ts';
import { passedOn, type AuthDoor } from './door.ts';
import { OIDC_CALLBACK, type OidcSignIn } from './oidc.ts';
import { limitTries } from './one-time-links.ts';

const TAG = 'Sign-in';
const FLOW_SECONDS = 600;

export interface OidcOperationsOptions {
  /** `null` where no provider is configured. */
  readonly oidc: OidcSignIn | null;
  readonly door: AuthDoor;
  readonly isSecure: boolean;
  /** Flows, by address. */
  readonly oidcLimiter: RateLimiter;
  readonly clock: Clock;
}

export function oidcOperations({ oidc, door, isSecure, oidcLimiter, clock }: OidcOperationsOptions): readonly Operation[] {
  const name = isSecure ? '__Secure-keyguard.oidc_state' : 'keyguard.oidc_state';
  // Lax, because it is the provider's page that sends the browser back.
  const attributes = `Path=/api/auth/oidc; HttpOnly; SameSite=Lax${isSecure ? '; Secure' : ''}`;
  const pattern = new RegExp(`(?:^|; )${name.replaceAll('.', '\\.')}=([A-Za-z0-9_-]{20,200})(?:;|$)`);
  const stateOf = (request: Request): string | null => pattern.exec(request.headers.cookie ?? '')?.[1] ?? null;

  function demandOidc(): OidcSignIn {
    if (oidc === null) throw new HttpProblem('not_found', 'No provider of sign-in is configured.');
    return oidc;
  }

  return [
    operation(
      {
        id: 'startOidcSignIn', action: 'auth.oidc_start', method: 'get', path: '/api/auth/oidc/start', tag: TAG, access: 'public',
        summary: 'Go to the provider to sign in there',
        answers: { 302: { description: 'To the provider' } },
        problems: ['not_found'],
      },
      async ({ request, response }) => {
        const provider = demandOidc();
        await limitTries(oidcLimiter, request.ip, clock.nowMs());
        const { location, state } = await provider.start();
        response.append('set-cookie', `${name}=${state}; Max-Age=${FLOW_SECONDS}; ${attributes}`);
        return { status: 302, headers: { location } };
      },
    ),

    operation(
      {
        id: 'finishOidcSignIn', action: 'auth.oidc_sign_in', method: 'get', path: OIDC_CALLBACK, tag: TAG, access: 'public',
        summary: 'Come back from the provider, with a session',
        query: z.looseObject({ state: z.string().max(500).optional(), code: z.string().max(4096).optional(), iss: z.string().max(500).optional(), error: z.string().max(200).optional() }),
        answers: { 303: { description: 'Signed in; to the start page' } },
        problems: ['oidc_refused', 'not_found', 'four_eyes_required'],
      },
      async ({ request, response }) => {
        const provider = demandOidc();
        await limitTries(oidcLimiter, request.ip, clock.nowMs());
        response.append('set-cookie', `${name}=; Max-Age=0; ${attributes}`);
        const { userId } = await provider.finish(new URL(request.originalUrl, 'http://localhost').searchParams, stateOf(request));
        const { headers = {} } = passedOn(response, await door.open(request, userId), () => ({}));
        return { status: 303, headers: { ...headers, location: '/' } };
      },
    ),
  ];
}
