/** What better-auth has no route for: the cookie and the bearer of a session that is there already, because its token was replaced. */
import type { BetterAuthPlugin } from 'better-auth';
import { APIError, createAuthEndpoint } from 'better-auth/api';
import { setSessionCookie } from 'better-auth/cookies';
import * as z from 'zod';

const body = z.object({ sessionId: z.string(), userId: z.string() });

interface Found {
  readonly token: string;
}

/** `auth.api.handOutSession`: for this process alone, no route leads to it. */
// The type of the endpoint is inferred, and `auth.api` has it.
// oxlint-disable-next-line typescript/explicit-module-boundary-types
export function sessionPlugin() {
  return {
    id: 'keyguard-session',
    endpoints: {
      handOutSession: createAuthEndpoint.serverOnly({ method: 'POST', body }, async (ctx) => {
        const { sessionId, userId } = ctx.body;
        const { adapter, internalAdapter } = ctx.context;
        const where = [{ field: 'id', value: sessionId }, { field: 'userId', value: userId }];
        const row = await adapter.findOne<Found>({ model: 'session', where });
        const found = row === null ? null : await internalAdapter.findSession(row.token);
        if (found === null) throw new APIError('UNAUTHORIZED', { message: 'The session has ended' });
        await setSessionCookie(ctx, found);
        return ctx.json({});
      }),
    },
  } satisfies BetterAuthPlugin;
}
