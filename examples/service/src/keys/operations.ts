/**
 * `/api/operations/kek-rotations` and `/api/operations/keks`: an administrator asks for a new key encryption key, sees how far its
 * rotation has come, and destroys one that is out of use. No byte of a key, wrapped or not, comes through here.
 */
import { randomUUID } from 'node:crypto';
import * as z from 'zod';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asJobs, asUser } from '../db/as-user.ts';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, time, timeJson } from '../http/pagination.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import { WARN_AT_WRAPS } from './kek-rotation.ts';

const TAG = 'Operations';
const SHOWN = 50;

const rotation = z
  .object({
    id: z.uuid(),
    state: z
      .enum(['requested', 'distributing', 'rewrapping', 'done'])
      .describe('`requested`: the new key is being made. `distributing`: every replica is to hold it. `rewrapping`: it is in use, and what is under the old one moves to it. `done`: the old one is disabled.'),
    from_kek_id: z.string().nullable(),
    to_kek_id: z.string().nullable(),
    rewrapped: z.int().describe('How many values have moved to the new key.'),
    remaining: z.int().nullable().describe('How many are under the old one; `null` before they are counted.'),
    damaged: z.int().describe('How many of those do not open. The old key stays in use until they are repaired or gone.'),
    requested_by: z.string(),
    created_at: time,
    promoted_at: time.nullable(),
    finished_at: time.nullable(),
  })
  .meta({ id: 'KekRotation' });

const kek = z
  .object({
    id: z.string(),
    state: z.enum(['pre-active', 'primary', 'decrypt-only', 'disabled', 'destroyed']),
    wraps: z.int().describe(`How many keys of values it has wrapped, but for those of the last second. Above ${WARN_AT_WRAPS} it is time to rotate.`),
    created_at: time,
  })
  .meta({ id: 'KeyEncryptionKey' });

interface RotationRow {
  id: string;
  state: z.infer<typeof rotation>['state'];
  from_kek_id: string | null;
  to_kek_id: string | null;
  rewrapped: unknown;
  remaining: unknown;
  damaged: unknown;
  requested_by: string;
  created_at_ms: unknown;
  promoted_at_ms: unknown;
  finished_at_ms: unknown;
}

interface KekRow {
  id: string;
  state: z.infer<typeof kek>['state'];
  wraps: unknown;
  created_at_ms: unknown;
}

const COLUMNS = 'id, state, from_kek_id, to_kek_id, rewrapped, remaining, damaged, requested_by, created_at_ms, promoted_at_ms, finished_at_ms';
const orNull = (value: unknown): number | null => (value === null ? null : Number(value));

function rotationJson(row: RotationRow): z.infer<typeof rotation> {
  return {
    id: row.id,
    state: row.state,
    from_kek_id: row.from_kek_id,
    to_kek_id: row.to_kek_id,
    rewrapped: Number(row.rewrapped),
    remaining: orNull(row.remaining),
    damaged: Number(row.damaged),
    requested_by: row.requested_by,
    created_at: timeJson(Number(row.created_at_ms)),
    promoted_at: timeJson(orNull(row.promoted_at_ms)),
    finished_at: timeJson(orNull(row.finished_at_ms)),
  };
}

const kekJson = ({ id, state, wraps, created_at_ms: createdAtMs }: KekRow): z.infer<typeof kek> => ({
  id,
  state,
  wraps: Number(wraps),
  created_at: timeJson(Number(createdAtMs)),
});

/** Above what the policies see: the rows of keys are open to the background alone, so the database is asked who is acting. */
async function demandAdministratorIn(tx: SqlTransaction): Promise<void> {
  const { rows } = await tx.query<{ is: boolean }>('SELECT keyguard.is_administrator() AS is');
  if (rows[0]?.is !== true) throw notFound();
}

function keksIn(tx: SqlTransaction, id: string | null): Promise<readonly KekRow[]> {
  return asJobs(tx, async (jobs) => {
    const { rows } = await jobs.query<KekRow>(
      `SELECT k.id, k.state, coalesce(u.wraps, 0) AS wraps, k.created_at_ms FROM keyguard.kek_keys k LEFT JOIN keyguard.kek_uses u ON u.kek_id = k.id
        WHERE k.purpose = 'kek' AND ($1::text IS NULL OR k.id = $1::text) ORDER BY k.created_at_ms DESC, k.id DESC`,
      [id],
    );
    return rows;
  });
}

export interface KeyOperationsOptions {
  readonly sql: SqlClient;
  readonly audit: AuditLog;
  /** Told once a rotation is asked for. */
  readonly onRequested: () => void;
  readonly clock?: Clock;
}

export function keyOperations({ sql, audit, onRequested, clock = systemClock }: KeyOperationsOptions): readonly Operation[] {
  return [
    operation(
      {
        id: 'rotateKek', action: 'kek.rotate', method: 'post', path: '/api/operations/kek-rotations', tag: TAG, access: 'administrator',
        summary: 'Rotate the key encryption key: a new one takes over, and the keys of all stored values move to it',
        description: 'Answers at once, and the work goes on in the background; all values stay readable. Where a rotation is running, it is that one.',
        answers: { 201: { description: 'Begun', json: rotation }, 200: { description: 'Running already', json: rotation } },
      },
      async ({ principal }) => {
        const [row, isNew] = await asUser(sql, principal.userId, async (tx) => {
          const id = randomUUID();
          const made = await tx.query<RotationRow>(
            `INSERT INTO keyguard.kek_rotations (id, requested_by, created_at_ms) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING ${COLUMNS}`,
            [id, principal.userId, clock.nowMs()],
          );
          if (made.rows[0] !== undefined) {
            await audit.recordIn(tx, { action: 'kek.rotate', outcome: 'success', actor: principal.actor, resource: `kek_rotation:${id}` });
            return [made.rows[0], true] as const;
          }
          const running = await tx.query<RotationRow>(`SELECT ${COLUMNS} FROM keyguard.kek_rotations WHERE finished_at_ms IS NULL`);
          // Between the two statements it came to its end.
          if (running.rows[0] === undefined) throw new HttpProblem('illegal_transition', 'A rotation has just ended: ask again for another one.');
          return [running.rows[0], false] as const;
        });
        if (isNew) onRequested();
        return { status: isNew ? 201 : 200, json: rotationJson(row) };
      },
    ),
    operation(
      {
        id: 'listKekRotations', action: 'kek.list_rotations', method: 'get', path: '/api/operations/kek-rotations', tag: TAG, access: 'administrator',
        summary: `List the last ${SHOWN} rotations of the key encryption key, newest first`,
        answers: { 200: { description: 'All of them', json: z.object({ data: z.array(rotation) }) } },
      },
      async ({ principal }) => {
        const { rows } = await asUser(sql, principal.userId, (tx) =>
          tx.query<RotationRow>(`SELECT ${COLUMNS} FROM keyguard.kek_rotations ORDER BY created_at_ms DESC, id DESC LIMIT $1`, [SHOWN]),
        );
        return { json: { data: rows.map(rotationJson) } };
      },
    ),
    operation(
      {
        id: 'getKekRotation', action: 'kek.read_rotation', method: 'get', path: '/api/operations/kek-rotations/{id}', tag: TAG, access: 'administrator',
        summary: 'See how far a rotation of the key encryption key has come',
        params: idParams,
        answers: { 200: { description: 'The rotation', json: rotation } },
        problems: ['not_found'],
      },
      async ({ params, principal }) => {
        const { rows } = await asUser(sql, principal.userId, (tx) =>
          tx.query<RotationRow>(`SELECT ${COLUMNS} FROM keyguard.kek_rotations WHERE id = $1`, [params.id]),
        );
        if (rows[0] === undefined) throw notFound();
        return { json: rotationJson(rows[0]) };
      },
    ),
    operation(
      {
        id: 'listKeks', action: 'kek.list', method: 'get', path: '/api/operations/keks', tag: TAG, access: 'administrator',
        summary: 'List the key encryption keys, newest first: what they are for now, and how much they were used',
        answers: { 200: { description: 'All of them', json: z.object({ data: z.array(kek) }) } },
      },
      async ({ principal }) => {
        const rows = await asUser(sql, principal.userId, async (tx) => {
          await demandAdministratorIn(tx);
          return keksIn(tx, null);
        });
        return { json: { data: rows.map(kekJson) } };
      },
    ),
    operation(
      {
        id: 'destroyKek', action: 'kek.destroy', method: 'post', path: '/api/operations/keks/{id}/destroy', tag: TAG, access: 'administrator',
        summary: 'Destroy a key encryption key that is disabled',
        description: 'For ever: its bytes are gone from the database. A backup that was made before still has them, and the values under it.',
        params: z.strictObject({ id: z.string().regex(/^kek-[0-9a-f-]{36}$/) }),
        answers: { 200: { description: 'Destroyed', json: kek } },
        problems: ['not_found', 'illegal_transition'],
      },
      async ({ params: { id }, principal }) => {
        const row = await asUser(sql, principal.userId, async (tx) => {
          await demandAdministratorIn(tx);
          await asJobs(tx, (jobs) => jobs.query('SELECT 1 FROM keyguard.kek_keys WHERE id = $1 FOR UPDATE', [id]));
          const [found] = await keksIn(tx, id);
          if (found === undefined) throw notFound();
          if (found.state !== 'disabled') throw new HttpProblem('illegal_transition', `This key is ${found.state}: only one that is disabled can be destroyed.`);
          await tx.query('INSERT INTO keyguard.kek_destructions (kek_id, requested_by, created_at_ms) VALUES ($1, $2, $3)', [id, principal.userId, clock.nowMs()]);
          await asJobs(tx, (jobs) => jobs.query(`UPDATE keyguard.kek_keys SET state = 'destroyed', wrapped = '' WHERE id = $1 AND state = 'disabled'`, [id]));
          await audit.recordIn(tx, { action: 'kek.destroy', outcome: 'success', actor: principal.actor, resource: `kek:${id}` });
          return (await keksIn(tx, id))[0]!;
        });
        return { json: kekJson(row) };
      },
    ),
  ];
}
