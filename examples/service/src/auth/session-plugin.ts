/**
 * What better-auth has no route for: the cookie and the bearer of a session whose token was replaced, and a session of somebody whom
 * a provider has proven.
 */
import type { BetterAuthPlugin } from 'better-auth';
import { APIError, createAuthEndpoint } from 'better-auth/api';
import { setSessionCookie } from 'better-auth/cookies';
import * as z from 'zod';
import type { KeyedHash } from '../keys/hierarchy.ts';
import { isSessionTokenOf } from './session-token.ts';

const openBody = z.object({ userId: z.string() });
const body = z.object({ sessionId: z.string(), userId: z.string() });

interface Found {
  readonly token: string;
}

/** `auth.api.handOutSession` and `auth.api.openSession`: for this process alone, no route leads to them. */
// The type of the endpoint is inferred, and `auth.api` has it.
// oxlint-disable-next-line typescript/explicit-module-boundary-types
export function sessionPlugin(hash: KeyedHash) {
  return {
    id: 'keyguard-session',
    endpoints: {
      handOutSession: createAuthEndpoint.serverOnly({ method: 'POST', body }, async (ctx) => {
        const { sessionId, userId } = ctx.body;
        const { adapter, internalAdapter } = ctx.context;
        const where = [{ field: 'id', value: sessionId }, { field: 'userId', value: userId }];
        const row = await adapter.findOne<Found>({ model: 'session', where });
        const found = row === null ? null : await internalAdapter.findSession(row.token);
        // The bearer of a row that was exchanged would be somebody else's.
        if (found === null || !isSessionTokenOf({ sessionId, userId }, found.session.token, hash)) throw new APIError('UNAUTHORIZED', { message: 'The session has ended' });
        await setSessionCookie(ctx, found);
        return ctx.json({});
      }),
      openSession: createAuthEndpoint.serverOnly({ method: 'POST', body: openBody }, async (ctx) => {
        const { internalAdapter } = ctx.context;
        const user = await internalAdapter.findUserById(ctx.body.userId);
        if (user === null) throw new APIError('UNAUTHORIZED', { message: 'There is no such person' });
        const session = await internalAdapter.createSession(user.id);
        await setSessionCookie(ctx, { session, user });
        return ctx.json({ token: session.token });
      }),
    },
  } satisfies BetterAuthPlugin;
}
