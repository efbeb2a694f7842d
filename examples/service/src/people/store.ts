/**
 * The people of this deployment as administrators see them: who is there, who administers, and who may not come in. Sign-in itself is
 * elsewhere; what is decided here takes effect with the next request of whomever it is about.
 */
import type { Clock } from '@keyguard/core/seams';
import { isUnavailable } from '@keyguard/core/errors';
import { pageOf, pageStart, postgresAdministrators, postgresDeviceDirectory, type Page, type PageRequest, type RowMacKey, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asAuth, asUser } from '../db/as-user.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import { areTwo, lockAdministrators } from '../roles/four-eyes.ts';
import { secondVoice, type AdministratorRequest, type RequestKind } from './second-voice.ts';

export interface PersonRecord {
  readonly id: string;
  readonly email: string;
  readonly name: string;
  readonly createdAtMs: number;
  readonly isAdministrator: boolean;
  readonly disabledAtMs: number | null;
  /** `false` where the row that makes this person an administrator was written behind our back: it makes nobody one. */
  readonly intact: boolean;
}

export interface PeopleDirectory {
  /** Newest first; of those whose address begins with `emailPrefix`, where it is given. The caller MUST be an administrator. */
  list(request: PageRequest & { readonly emailPrefix: string | null }): Promise<Page<PersonRecord>>;
  /** @throws HttpProblem `not_found` for anybody else than oneself, but to administrators */
  get(principal: Principal, id: string): Promise<PersonRecord>;
  /**
   * Where two administer, once a second one has asked for it as well; until then, what waits for that one.
   * @throws HttpProblem `not_found`, `illegal_transition` for who is disabled
   */
  makeAdministrator(principal: Principal, id: string): Promise<PersonRecord | AdministratorRequest>;
  /**
   * Likewise; but everybody gives it up for themself alone.
   * @throws HttpProblem `not_found`, `last_administrator`: one is always left, whatever races; `four_eyes_required` where there is no third
   *   one who could agree
   */
  unmakeAdministrator(principal: Principal, id: string): Promise<PersonRecord | AdministratorRequest>;
  /** What waits for a second administrator. The caller MUST be one. */
  listRequests(request: PageRequest): Promise<Page<AdministratorRequest>>;
  /** Takes back what the caller has asked for. @throws HttpProblem `not_found` */
  withdrawRequest(principal: Principal, id: string): Promise<void>;
  /**
   * Ends all sessions, shuts the devices, revokes the enrollment codes; what sign-in answers from then on is what it answers to a
   * wrong password. The tokens of the person's service accounts are refused meanwhile.
   * @throws HttpProblem `not_found`, `illegal_transition` for an administrator
   */
  disable(principal: Principal, id: string): Promise<PersonRecord>;
  /** Lets the person sign in again. Devices stay suspended until somebody resumes them. @throws HttpProblem `not_found` */
  enable(principal: Principal, id: string): Promise<PersonRecord>;
}

export interface PeopleDirectoryOptions {
  readonly sql: SqlClient;
  readonly rowMacKey: RowMacKey;
  readonly audit: AuditLog;
  readonly clock: Clock;
  /** Told of every device that was shut, once that is durable and before it is acknowledged. */
  readonly onDeviceShut: (deviceId: string) => void;
}

interface PersonRow {
  id: string;
  email: string;
  name: string;
  created_at_ms: unknown;
  administers: boolean;
  disabled_at_ms: unknown;
}

const CREATED = `(pg_catalog.date_part('epoch', u.created_at) * 1000)::bigint`;
const SELECT = `SELECT u.id, u.email, u.name, ${CREATED} AS created_at_ms, a.user_id IS NOT NULL AS administers, d.disabled_at_ms
  FROM keyguard_auth.users u LEFT JOIN keyguard.administrators a ON a.user_id = u.id LEFT JOIN keyguard.disabled_people d ON d.user_id = u.id`;

export function createPeopleDirectory({ sql, rowMacKey, audit, clock, onDeviceShut }: PeopleDirectoryOptions): PeopleDirectory {
  const voice = secondVoice({ rowMacKey, clock });

  async function personOf(tx: SqlTransaction, row: PersonRow): Promise<PersonRecord> {
    let isAdministrator = false;
    let intact = true;
    try {
      isAdministrator = row.administers && (await postgresAdministrators(tx, { rowMacKey }).has(row.id));
    } catch (error) {
      if (!isUnavailable(error) || error.seam !== 'administrators') throw error;
      intact = false;
    }
    return {
      id: row.id,
      email: row.email,
      name: row.name,
      createdAtMs: Number(row.created_at_ms),
      isAdministrator,
      disabledAtMs: row.disabled_at_ms === null ? null : Number(row.disabled_at_ms),
      intact,
    };
  }

  async function readIn(tx: SqlTransaction, id: string): Promise<PersonRecord> {
    const { rows } = await tx.query<PersonRow>(`${SELECT} WHERE u.id = $1`, [id]);
    if (rows[0] === undefined) throw notFound();
    return personOf(tx, rows[0]);
  }

  /** The person, with nobody else deciding at this moment who administers and who is disabled. */
  async function lockedIn(tx: SqlTransaction, by: Principal, id: string): Promise<PersonRecord> {
    await lockAdministrators(tx);
    // Whoever was an administrator when this request began may be none any more.
    if (!(await postgresAdministrators(tx, { rowMacKey }).has(by.userId))) throw new HttpProblem('forbidden', 'Only an administrator may do this.');
    return readIn(tx, id);
  }

  /** Whether somebody beside these administers by a row that bears its MAC. */
  async function isAnotherLeft(tx: SqlTransaction, ids: readonly string[]): Promise<boolean> {
    const { rows } = await tx.query<{ user_id: string }>('SELECT user_id FROM keyguard.administrators WHERE user_id <> ALL ($1)', [ids]);
    for (const { user_id: other } of rows) {
      if ((await readIn(tx, other).catch(ignoreMissing))?.isAdministrator === true) return true;
    }
    return false;
  }

  /** Who has asked for it before the caller; or what the caller has asked for now, and waits for a second one. */
  async function secondIn(tx: SqlTransaction, principal: Principal, kind: RequestKind, id: string): Promise<string | AdministratorRequest> {
    const heard = await voice.heardIn(tx, kind, id, principal.userId);
    if (heard !== null) return heard;
    const request = await voice.askIn(tx, kind, id, principal.userId);
    await audit.recordIn(tx, {
      action: `user.request_${kind}_administrator`, outcome: 'success', actor: principal.actor, resource: `user:${id}`, administrator_request: request.id, expires_at_ms: request.expiresAtMs,
    });
    return request;
  }

  async function shutDevicesIn(tx: SqlTransaction, by: Principal, ownerId: string): Promise<readonly string[]> {
    return asUser(tx, by.userId, async (inner) => {
      // Before the devices: whoever is enrolling with one of them at this moment is waited for.
      await inner.query('UPDATE keyguard.enrollment_codes SET revoked_at_ms = $2 WHERE for_user_id = $1 AND revoked_at_ms IS NULL', [ownerId, clock.nowMs()]);
      const directory = postgresDeviceDirectory(inner, { rowMacKey, clock });
      const shut: string[] = [];
      let cursor: string | null = null;
      do {
        const page: Awaited<ReturnType<typeof directory.list>> = await directory.list({ asUserId: by.userId, ownerId, status: 'active', limit: 200, cursor });
        for (const { deviceId, intact } of page.items) {
          // One that nobody vouches for lets nobody in as it is.
          if (!intact) continue;
          const { outcome } = await directory.transition(deviceId, 'suspend', { byUserId: by.userId });
          if (outcome === 'changed') shut.push(deviceId);
        }
        cursor = page.nextCursor;
      } while (cursor !== null);
      return shut;
    });
  }

  return {
    async list({ emailPrefix, ...request }) {
      const start = pageStart(request);
      const { limit = 50 } = request;
      return asAuth(sql, async (tx) => {
        const { rows } = await tx.query<PersonRow>(
          `${SELECT} WHERE ($1::bigint IS NULL OR (${CREATED}, u.id) < ($1::bigint, $2::text)) AND ($3::text IS NULL OR starts_with(u.email, $3))
            ORDER BY ${CREATED} DESC, u.id DESC LIMIT $4`,
          [start?.[0] ?? null, start?.[1] ?? null, emailPrefix, limit + 1],
        );
        const items: PersonRecord[] = [];
        for (const row of rows.slice(0, limit)) items.push(await personOf(tx, row));
        const { nextCursor } = pageOf(rows, limit, (row) => [Number(row.created_at_ms), row.id], (row) => row.id);
        return { items, nextCursor };
      });
    },

    async get(principal, id) {
      if (id !== principal.userId && !principal.isAdministrator) throw notFound();
      return asAuth(sql, (tx) => readIn(tx, id));
    },

    makeAdministrator: (principal, id) =>
      asAuth(sql, async (tx) => {
        const person = await lockedIn(tx, principal, id);
        if (person.isAdministrator) return person;
        if (person.disabledAtMs !== null) throw new HttpProblem('illegal_transition', 'Who is disabled cannot administer: enable this person first.');
        const second = (await areTwo(tx)) ? await secondIn(tx, principal, 'make', id) : null;
        if (second !== null && typeof second !== 'string') return second;
        const administrators = postgresAdministrators(tx, { rowMacKey, clock });
        // A row that nobody vouches for would stand in the way of the true one.
        if (!person.intact) await administrators.revoke(id);
        await administrators.grant(id, { grantedBy: principal.userId });
        const made = await readIn(tx, id);
        await voice.settleIn(tx, id);
        await audit.recordIn(tx, { action: 'user.make_administrator', outcome: 'success', actor: principal.actor, resource: `user:${id}`, requested_by: second });
        return made;
      }),

    unmakeAdministrator: (principal, id) =>
      asAuth(sql, async (tx) => {
        const person = await lockedIn(tx, principal, id);
        if (!person.isAdministrator && person.intact) return person;
        if (person.isAdministrator && !(await isAnotherLeft(tx, [id]))) {
          throw new HttpProblem('last_administrator', 'Somebody must administer: make another person an administrator first.');
        }
        // To give it up is one's own to decide; and a row that nobody vouches for makes nobody an administrator.
        const isOwn = id === principal.userId;
        if (person.isAdministrator && !isOwn && !(await isAnotherLeft(tx, [id, principal.userId]))) {
          throw new HttpProblem('four_eyes_required', 'There is no third administrator who could agree: they give it up themself, or the operator takes it away on the host (keyguard administrators remove).');
        }
        const second = person.isAdministrator && !isOwn ? await secondIn(tx, principal, 'unmake', id) : null;
        if (second !== null && typeof second !== 'string') return second;
        await postgresAdministrators(tx, { rowMacKey, clock }).revoke(id);
        const unmade = await readIn(tx, id);
        await voice.settleIn(tx, id);
        await audit.recordIn(tx, { action: 'user.unmake_administrator', outcome: 'success', actor: principal.actor, resource: `user:${id}`, requested_by: second });
        return unmade;
      }),

    listRequests: (request) => asAuth(sql, (tx) => voice.listIn(tx, request)),

    withdrawRequest: (principal, id) =>
      asAuth(sql, async (tx) => {
        const withdrawn = await voice.withdrawIn(tx, id, principal.userId);
        if (withdrawn === null) throw notFound();
        await audit.recordIn(tx, {
          action: 'user.withdraw_administrator_request', outcome: 'success', actor: principal.actor, resource: `user:${withdrawn.subjectId}`, kind: withdrawn.kind, administrator_request: id,
        });
      }),

    async disable(principal, id) {
      const { person, shut } = await asAuth(sql, async (tx) => {
        const before = await lockedIn(tx, principal, id);
        if (before.disabledAtMs !== null) return { person: before, shut: [] };
        if (before.isAdministrator || !before.intact) throw new HttpProblem('illegal_transition', 'This person administers: take that away first.');
        const { rows: sessions } = await tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1 RETURNING id', [id]);
        await tx.query('INSERT INTO keyguard.disabled_people (user_id, disabled_by, disabled_at_ms) VALUES ($1, $2, $3)', [id, principal.userId, clock.nowMs()]);
        const devices = await shutDevicesIn(tx, principal, id);
        // Nobody's word of before makes this person an administrator once they are enabled.
        await voice.settleIn(tx, id);
        const disabled = await readIn(tx, id);
        await audit.recordIn(tx, {
          action: 'user.disable', outcome: 'success', actor: principal.actor, resource: `user:${id}`, sessions_ended: sessions.length, devices_suspended: [...devices],
        });
        return { person: disabled, shut: devices };
      });
      for (const deviceId of shut) onDeviceShut(deviceId);
      return person;
    },

    enable: (principal, id) =>
      asAuth(sql, async (tx) => {
        const before = await lockedIn(tx, principal, id);
        if (before.disabledAtMs === null) return before;
        await tx.query('DELETE FROM keyguard.disabled_people WHERE user_id = $1', [id]);
        // One that was beginning as the person was disabled has been out of sight since.
        await tx.query('DELETE FROM keyguard_auth.sessions WHERE user_id = $1', [id]);
        const enabled = await readIn(tx, id);
        await audit.recordIn(tx, { action: 'user.enable', outcome: 'success', actor: principal.actor, resource: `user:${id}` });
        return enabled;
      }),
  };
}

function ignoreMissing(error: unknown): null {
  if (error instanceof HttpProblem && error.code === 'not_found') return null;
  throw error;
}
