/**
 * `GET /api/audit/timeline`: everything that is on record about one thing, as it happened, whichever member of an entry names it. Each
 * line says its number, by which it is proven.
 */
import * as z from 'zod';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { asAuth, asUser } from '../db/as-user.ts';
import { operation, type Operation } from '../http/operations.ts';
import { pageQuery } from '../http/pagination.ts';
import { HttpProblem } from '../http/problems.ts';
import { seqCursor } from './cursor.ts';
import type { AuditOperationsOptions } from './operations.ts';
import { auditEntry, entryJson, originQuery, readsAll, seqOf, type EntryJson, type EntryRow } from './reading.ts';

// oxlint-disable-next-line no-control-regex -- the database takes no NUL
const CONTROL = /[\u0000-\u001f\u007f]/;
const subject = (what: string): z.ZodOptional<z.ZodString> => z.string().min(1).max(200).refine((text) => !CONTROL.test(text), 'must not have control characters').optional().describe(what);

const subjects = {
  secret: subject('The id of a secret.'),
  api_key: subject('The id of a provider key.'),
  device: subject('The id of a device: what it did, and what was done to it.'),
  user: subject('The id of a person: what they did, and what was done to them.'),
  ip: subject('An address.'),
  session: subject('The id of a session: what was done in it, and to it.'),
  request: subject('The id of a request, as `x-request-id` has it.'),
};
type Kind = keyof typeof subjects;

/** One way in which an entry can be about something: a condition of one index, with its parameters from `$first` on. */
interface Way {
  readonly text: (first: number) => string;
  readonly params: readonly unknown[];
}

const equal = (column: 'resource' | 'actor' | 'device_id' | 'ip' | 'request_id', value: string): Way => ({ text: (n) => `${column} = $${n}`, params: [value] });

/** As canonical JSON has it: within a text the quotes are escaped, so it is found where it is a member, and nowhere else. */
function inSession(actor: string, id: string): Way {
  const member = Buffer.from(`"session_id":${JSON.stringify(id)}`);
  return { text: (n) => `actor = $${n} AND position($${n + 1}::bytea IN entry) > 0`, params: [actor, member] };
}

function waysTo(kind: Kind, id: string, sessionActor: string | null): readonly Way[] {
  switch (kind) {
    case 'secret':
    case 'api_key':
      return [equal('resource', `${kind}:${id}`)];
    case 'device':
      return [equal('device_id', id), equal('resource', `device:${id}`), equal('actor', `device:${id}`)];
    case 'user':
      return [equal('actor', `user:${id}`), equal('resource', `user:${id}`)];
    case 'ip':
      return [equal('ip', id)];
    case 'request':
      return [equal('request_id', id)];
    case 'session':
      return [equal('resource', `session:${id}`), ...(sessionActor === null ? [] : [inSession(sessionActor, id)])];
  }
}

export function timelineOperation({ sql, access, audit }: Pick<AuditOperationsOptions, 'sql' | 'access' | 'audit'>): Operation {
  /** Whose session it is or was, as an actor. */
  async function actorOf(tx: SqlTransaction, origin: string, sessionId: string): Promise<string | null> {
    const { rows } = await tx.query<{ actor: string }>(
      `SELECT actor FROM keyguard.secret_audit_logs WHERE origin = $1 AND resource = $2 AND actor LIKE 'user:%' ORDER BY seq LIMIT 1`,
      [origin, `session:${sessionId}`],
    );
    return rows[0]?.actor ?? null;
  }

  async function ownerOf(sessionId: string): Promise<string | null> {
    const { rows } = await asAuth(sql, (tx) => tx.query<{ user_id: string }>('SELECT user_id FROM keyguard_auth.sessions WHERE id = $1', [sessionId]));
    return rows[0] === undefined ? null : `user:${rows[0].user_id}`;
  }

  /** The names of the people in `entries`; for administrators, who may see them elsewhere too. */
  async function namesOf(entries: readonly EntryJson[], principal: Principal): Promise<Readonly<Record<string, string>>> {
    if (!principal.isAdministrator) return {};
    const ids = new Set(entries.flatMap(({ actor, resource }) => [actor, resource]).flatMap((name) => (typeof name === 'string' && name.startsWith('user:') ? [name.slice(5)] : [])));
    if (ids.size === 0) return {};
    const { rows } = await asAuth(sql, (tx) => tx.query<{ id: string; email: string }>('SELECT id, email FROM keyguard_auth.users WHERE id = ANY ($1::text[])', [[...ids]]));
    return Object.fromEntries(rows.map(({ id, email }) => [`user:${id}`, email]));
  }

  return operation(
    {
      id: 'getAuditTimeline', action: 'audit.timeline', method: 'get', path: '/api/audit/timeline', tag: 'Audit', access: 'audit:read',
      summary: 'Everything on record about one thing, as it happened',
      description: 'Name exactly one thing. Whoever does not read the whole log sees what they did themselves. The number of each entry is the one for its proof.',
      query: z.strictObject({
        ...subjects,
        ...originQuery,
        order: z.enum(['oldest_first', 'newest_first']).default('oldest_first'),
        limit: pageQuery.shape.limit,
        cursor: seqCursor.optional(),
      }),
      answers: {
        200: {
          description: 'A page',
          json: z.object({
            data: z.array(auditEntry),
            names: z.record(z.string(), z.string()).describe('For administrators: the e-mail address of each person in these entries, by `user:` and id.'),
            has_more: z.boolean(),
            next_cursor: z.string().nullable(),
          }),
        },
      },
    },
    async ({ query: { order, limit = 50, cursor, origin: asked, ...given }, principal }) => {
      const named = Object.entries(given).filter((each): each is [Kind, string] => each[1] !== undefined);
      const [kind, id] = named[0] ?? [];
      if (kind === undefined || id === undefined || named.length !== 1) {
        throw new HttpProblem('invalid_request', `Name one thing: ${Object.keys(subjects).join(', ')}.`);
      }
      const origin = asked ?? audit.origin;
      const [direction, beyond] = order === 'oldest_first' ? ['ASC', '>'] : ['DESC', '<'];
      // Before the transaction: that of somebody else must not be waited for inside it.
      const owner = kind === 'session' ? await ownerOf(id) : null;
      const rows = await asUser(sql, principal.userId, async (tx) => {
        const all = await readsAll(tx, access, principal);
        const sessionActor = kind !== 'session' ? null : all ? (owner ?? (await actorOf(tx, origin, id))) : principal.actor;
        const params: unknown[] = [origin, cursor ?? null, limit + 1, all, principal.actor];
        // Each way by its own index, and no more of each than the page has room for.
        const ways = waysTo(kind, id, sessionActor).map(({ text, params: own }) => {
          const condition = text(params.length + 1);
          params.push(...own);
          return `(SELECT seq FROM keyguard.secret_audit_logs WHERE origin = $1 AND ($2::bigint IS NULL OR seq ${beyond} $2::bigint) AND ($4::boolean OR actor = $5)
            AND ${condition} ORDER BY seq ${direction} LIMIT $3)`;
        });
        const found = await tx.query<EntryRow>(
          `SELECT seq, entry FROM keyguard.secret_audit_logs WHERE origin = $1 AND ($4::boolean OR actor = $5)
            AND seq IN (SELECT u.seq FROM (${ways.join(' UNION ')}) u ORDER BY u.seq ${direction} LIMIT $3) ORDER BY seq ${direction}`,
          params,
        );
        return found.rows;
      });
      const shown = rows.slice(0, limit);
      const entries = shown.map(entryJson);
      const hasMore = rows.length > limit;
      return { json: { data: entries, names: await namesOf(entries, principal), has_more: hasMore, next_cursor: hasMore ? String(seqOf(shown.at(-1)!)) : null } };
    },
  );
}
