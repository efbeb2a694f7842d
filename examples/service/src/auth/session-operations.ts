/** `/api/sessions`: who is signed in where, and ending it; and letting in again who tried too often. */
import * as z from 'zod';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asAuth } from '../db/as-user.ts';
import { operation, type Operation } from '../http/operations.ts';
import { pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import { accountOf, type Attempts } from './attempts.ts';
import { userAccount } from './credentials.ts';
import { personOf } from './principal.ts';
import { textId, userParams } from './schema.ts';
import type { SessionRecord, Sessions } from './sessions.ts';

const TAG = 'Sessions';

const listQuery = pageQuery.extend({ user_id: textId.optional().describe('Whose; for administrators. Your own, if it is left out.') });

const session = z
  .object({
    id: z.string(),
    user_id: z.string(),
    is_current: z.boolean().describe('Whether it is the one that asks.'),
    started_at: time,
    last_used_at: time.describe('To a minute.'),
    ends_at: time.describe('However much it is used; earlier where nobody uses it.'),
    ip: z.string().nullable(),
    user_agent: z.string().nullable(),
    second_factor_at: time.nullable().describe('When a second factor was last proven in it.'),
  })
  .meta({ id: 'SessionRecord' });

const ended = z.object({ ended: z.int().describe('How many there were.') });

export interface SessionOperationsOptions {
  readonly sql: SqlClient;
  readonly audit: AuditLog;
  readonly sessions: Sessions;
  readonly attempts: Attempts;
}

export function sessionOperations({ sql, audit, sessions, attempts }: SessionOperationsOptions): readonly Operation[] {
  async function emailOf(userId: string): Promise<string> {
    const { rows } = await asAuth(sql, (tx) => tx.query<{ email: string }>('SELECT email FROM keyguard_auth.users WHERE id = $1', [userId]));
    if (rows[0] === undefined) throw notFound();
    return rows[0].email;
  }

  return [
    operation(
      {
        id: 'listSessions', action: 'session.list', method: 'get', path: '/api/sessions', tag: TAG, access: 'person',
        summary: 'List live sessions, newest first',
        query: listQuery,
        answers: { 200: { description: 'A page', json: pageOf(session) } },
      },
      async ({ principal, query: { user_id: userId, ...query } }) => {
        const person = personOf(principal);
        // Whether there is such a person or not.
        if (userId !== undefined && userId !== person.userId && !person.isAdministrator) throw new HttpProblem('forbidden', 'Only an administrator lists the sessions of others.');
        return { json: pageJson(await sessions.list(userId ?? person.userId, pageRequest(query)), (one) => sessionJson(one, person.sessionId)) };
      },
    ),

    operation(
      {
        id: 'endSession', action: 'session.end', method: 'delete', path: '/api/sessions/{id}', tag: TAG, access: 'person',
        summary: 'End a session, and with it its JWTs, at once',
        params: z.strictObject({ id: textId }),
        answers: { 204: { description: 'Ended' } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => {
        if (!(await sessions.end(params.id, personOf(principal)))) throw notFound();
        return {};
      },
    ),

    operation(
      {
        id: 'endOtherSessions', action: 'session.end_all', method: 'post', path: '/api/sessions/end-others', tag: TAG, access: 'person',
        summary: 'End all your sessions but this one',
        answers: { 200: { description: 'Ended', json: ended } },
      },
      async ({ principal }) => {
        const person = personOf(principal);
        return { json: { ended: await sessions.endAll(person.userId, person, { except: person.sessionId }) } };
      },
    ),

    operation(
      {
        id: 'endSessionsOfUser', action: 'session.end_all', method: 'post', path: '/api/users/{id}/end-sessions', tag: TAG, access: 'administrator',
        summary: 'End all sessions of a person',
        params: userParams,
        answers: { 200: { description: 'Ended', json: ended } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => {
        await emailOf(params.id);
        return { json: { ended: await sessions.endAll(params.id, personOf(principal)) } };
      },
    ),

    operation(
      {
        id: 'unlockUser', action: 'auth.unlock', method: 'post', path: '/api/users/{id}/unlock', tag: TAG, access: 'administrator',
        summary: 'Let somebody try again who tried password or second factor too often',
        params: userParams,
        answers: { 204: { description: 'Whatever was counted is forgotten' } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => {
        const email = await emailOf(params.id);
        await asAuth(sql, async (tx) => {
          for (const account of [accountOf(email), userAccount(params.id)]) await attempts.unlock(account, tx);
          await audit.recordIn(tx, { action: 'auth.unlock', outcome: 'success', actor: principal.actor, resource: `user:${params.id}` });
        });
        return {};
      },
    ),
  ];
}

function sessionJson(one: SessionRecord, currentId: string): z.infer<typeof session> {
  return {
    id: one.id,
    user_id: one.userId,
    is_current: one.id === currentId,
    started_at: timeJson(one.startedAtMs),
    last_used_at: timeJson(one.lastUsedAtMs),
    ends_at: timeJson(one.endsAtMs),
    ip: one.ip,
    user_agent: one.userAgent,
    second_factor_at: timeJson(one.secondFactorAtMs),
  };
}
