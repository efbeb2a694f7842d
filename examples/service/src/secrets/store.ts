/**
 * Secrets with their versions. A value is sealed before its transaction and opened after it; the transaction writes the row, the
 * version and the audit entry together or nothing at all. A value leaves this room only once its reveal is on record.
 */
import { randomUUID } from 'node:crypto';
import { fromUtf8, utf8 } from '@keyguard/core/bytes';
import { isUnavailable, UnavailableError } from '@keyguard/core/errors';
import type { AuditEntry, Clock, JsonValue } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { open, seal, type SealedValue } from '@keyguard/core/vault';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { Access } from '../roles/access.ts';
import { NO_QUOTAS, type Quotas } from '../settings/quotas.ts';
import { allowedExpiry, defaultExpiry, longestExpiry, UNLIMITED_LIVES, type SecretLives } from './lives.ts';
import { newestSecrets } from './newest.ts';
import { notIntact, sealedIn, secretMac, secretRows, versionPlace, type HeldSecret, type SealedRow, type Secret, type SecretRows } from './rows.ts';
import type { OnTamperedShare } from './shares.ts';
import { inTurns } from './turns.ts';
import { examine, type SecretType } from './types.ts';

const AUDIT_TIMEOUT_MS = 5000;
const MAX_TRIES = 20;
const MAX_NUMBERS = 32;

export interface NewSecret {
  readonly name: string;
  readonly type: SecretType;
  /** Secret. */
  readonly value: string;
  readonly tags: readonly string[];
  readonly projectId: string | null;
  /** `undefined`: as the value says, where it says anything. */
  readonly expiresAtMs: number | null | undefined;
}

export interface SecretChange {
  readonly name?: string;
  readonly tags?: readonly string[];
  readonly expiresAtMs?: number | null;
}

/** The states that If-Match names; `null` for any. */
export type IfMatch = readonly string[] | null;

export interface NewVersion {
  /** Secret. */
  readonly value: string;
  readonly reason: string | null;
  readonly expiresAtMs: number | null | undefined;
  readonly ifMatch: IfMatch;
}

/** A value that is released. */
export interface Revealed {
  readonly secret: Secret;
  readonly version: number;
  /** Secret. */
  readonly value: string;
}

export interface RevealOptions {
  /** `null` for the current one. */
  readonly version: number | null;
  /** The owner may read what has expired, if they say so. */
  readonly allowExpired: boolean;
}

/** A version whose value is sealed already, for the place that it will have. */
export interface SealedVersion {
  readonly secret: Secret;
  readonly sealed: SealedValue;
  readonly reason: string | null;
}

export interface NextOptions {
  readonly reason: string | null;
  readonly expiresAtMs: number | null | undefined;
  /** For how many version numbers to seal it. */
  readonly numbers?: number;
}

/** What follows on a secret as it is then; `null` where it was not sealed for that number. */
export type NextVersion = (secret: Secret) => SealedVersion | null;

/** Of this slice: what operations on one secret and on many have in common. */
export interface SecretStore {
  readonly rows: SecretRows;
  create(principal: Principal, secret: NewSecret): Promise<HeldSecret>;
  read(principal: Principal, id: string): Promise<HeldSecret>;
  update(principal: Principal, id: string, change: SecretChange, ifMatch: IfMatch): Promise<HeldSecret>;
  addVersion(principal: Principal, id: string, version: NewVersion): Promise<HeldSecret>;
  restore(principal: Principal, id: string, version: number, ifMatch: IfMatch): Promise<HeldSecret>;
  destroyVersion(principal: Principal, id: string, version: number): Promise<void>;
  destroy(principal: Principal, id: string, ifMatch: IfMatch): Promise<void>;
  reveal(principal: Principal, id: string, options: RevealOptions): Promise<Revealed>;

  /** The same for those who do it to many at once. */
  readonly parts: {
    /** Opened, and not on record yet: MUST NOT leave before `record` has resolved. */
    openFor(principal: Principal, id: string, permission: 'secrets:reveal' | 'secrets:update', options: RevealOptions): Promise<Revealed>;
    /** Resolves when every entry is durable; throws after a time, and then nothing may be released. */
    record(entries: readonly AuditEntry[]): Promise<void>;
    revealEntry(principal: Principal, revealed: Revealed, more?: Readonly<Record<string, JsonValue>>): AuditEntry;
    /** @throws HttpProblem `not_found` where the caller may store nothing in this project */
    demandProject(tx: SqlTransaction, principal: Principal, projectId: string | null): Promise<void>;
    /** That a secret which has expired is changed by its owner alone. @throws HttpProblem `secret_expired` */
    demandCurrentOrOwn(principal: Principal, secret: Secret): void;
    /** That the caller may have `adding` secrets more; to be asked before any is locked. @throws HttpProblem `quota_exceeded` */
    demandRoom(tx: SqlTransaction, principal: Principal, adding: number): Promise<void>;
    sealNew(principal: Principal, secret: NewSecret): Promise<SealedVersion>;
    /** `value` as the next version of `secret`, or as one of those after it, where others are faster. */
    sealNext(secret: Secret, value: string, options: NextOptions): Promise<NextVersion>;
    insert(tx: SqlTransaction, principal: Principal, made: SealedVersion, more?: Readonly<Record<string, JsonValue>>): Promise<void>;
    /** For a secret that is locked, and whose version is the one that `made` follows. */
    append(tx: SqlTransaction, principal: Principal, made: SealedVersion, action: string, more?: Readonly<Record<string, JsonValue>>): Promise<void>;
  };
}

export interface SecretStoreOptions {
  readonly sql: SqlClient;
  readonly keys: Pick<DeploymentKeys, 'deploymentId' | 'kek' | 'rowMacKey' | 'auditMac'>;
  readonly audit: AuditLog;
  readonly access: Access;
  /** Told of each share that bears no MAC of this deployment, whenever it is met. */
  readonly onTamperedShare?: OnTamperedShare;
  /** Asked for every secret that begins, and every end that somebody sets. Default: no limit. */
  readonly lives?: () => SecretLives;
  readonly quotas?: Quotas;
  readonly clock?: Clock;
  readonly auditTimeoutMs?: number;
}

/** As an ETag shows it. */
export function stateOf({ revision }: Secret): string {
  return `r${revision}`;
}

function demandState(secret: Secret, ifMatch: IfMatch): void {
  if (ifMatch !== null && !ifMatch.includes(stateOf(secret))) {
    throw new HttpProblem('precondition_failed', 'Somebody has changed this secret since you saw it: read it again.');
  }
}

/**
 * That a secret is past its date is for its owner alone to end: whoever may change it could read it else, by giving it another date.
 * @throws HttpProblem `secret_expired`
 */
function demandCurrentOrOwn({ expiresAtMs, ownerId }: Secret, principal: Principal, nowMs: number): void {
  if (expiresAtMs !== null && expiresAtMs <= nowMs && ownerId !== principal.userId) {
    throw new HttpProblem('secret_expired', 'This secret has expired. Only its owner gives it another date or a new value.');
  }
}

const nameTaken = (): HttpProblem => new HttpProblem('name_taken', 'You have a secret of that name there already.');
const destroyed = (): HttpProblem => new HttpProblem('version_destroyed', 'The value of this version was destroyed.');

/** Whether the database refused a name because its owner has used it, between a look and the change. */
function isNameTaken(error: unknown): boolean {
  return isUnavailable(error) && error.cause instanceof Error && error.cause.message.includes('enterprise_secrets_name');
}

export function createSecretStore(options: SecretStoreOptions): SecretStore {
  const { sql, keys, audit, access, onTamperedShare, lives = (): SecretLives => UNLIMITED_LIVES, quotas = NO_QUOTAS, clock = systemClock, auditTimeoutMs = AUDIT_TIMEOUT_MS } = options;
  const { rowMacKey } = keys;
  const primitives = nodeVaultPrimitives();
  const rows = secretRows({ access, rowMacKey, clock, ...(onTamperedShare !== undefined && { onTamperedShare }) });
  const newest = newestSecrets({ origin: audit.origin, auditMac: keys.auditMac });
  const turns = inTurns();

  async function recorded<T>(work: Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new UnavailableError('audit_sink', 'The audit log did not answer in time.')), auditTimeoutMs);
    });
    try {
      return await Promise.race([work, late]);
    } finally {
      clearTimeout(timer);
    }
  }

  const entry = (principal: Principal, action: string, { id, projectId }: Secret, more: Readonly<Record<string, JsonValue>>): AuditEntry => ({
    action,
    outcome: 'success',
    actor: principal.actor,
    resource: `secret:${id}`,
    project_id: projectId,
    ...more,
  });

  const sealFor = (secret: Secret, value: string): Promise<SealedValue> =>
    seal(utf8(value), versionPlace(keys.deploymentId, secret, secret.currentVersion), { keyProvider: keys.kek, primitives });

  async function writeVersion(tx: SqlTransaction, principal: Principal, { secret, sealed, reason }: SealedVersion): Promise<void> {
    await tx.query(
      `INSERT INTO keyguard.secret_versions (subject_type, subject_id, version, ciphertext, wrapped_dek, kek_id, state, created_by, reason, created_at_ms)
        VALUES ('secret', $1, $2, $3, $4, $5, 'active', $6, $7, $8)`,
      [secret.id, secret.currentVersion, sealed.ciphertext, sealed.wrappedDek, sealed.kekId, principal.userId, reason, secret.updatedAtMs],
    );
  }

  async function writeRow(tx: SqlTransaction, secret: Secret): Promise<void> {
    const { rows: changed } = await tx.query(
      `UPDATE keyguard.enterprise_secrets SET name = $2, tags = $3, current_version = $4, revision = $5, expires_at_ms = $6, updated_at_ms = $7,
        deleted_at_ms = $8, mac_key_id = $9, mac = $10 WHERE id = $1 RETURNING id`,
      [secret.id, secret.name, secret.tags, secret.currentVersion, secret.revision, secret.expiresAtMs, secret.updatedAtMs, secret.deletedAtMs,
        rowMacKey.keyId, await secretMac(rowMacKey, secret)],
    );
    if (changed.length === 0) throw notFound();
  }

  const parts: SecretStore['parts'] = {
    record: (entries) => recorded(Promise.all(entries.map((one) => audit.record(one))).then(() => {})),
    revealEntry: (principal, { secret, version }, more = {}) => entry(principal, 'secret.reveal', secret, { version, ...more }),

    async demandProject(tx, principal, projectId) {
      if (projectId === null) {
        // What is in no project is the caller's own; only a program without the scope may not.
        const own = await access.permissionsOn(tx, principal, { ownerId: principal.userId, projectId, shared: [] });
        if (!own.has('secrets:create')) throw new HttpProblem('forbidden', 'You may store no secrets.');
        return;
      }
      const { rows: found } = await tx.query<{ is_open: boolean; owns: boolean }>(
        'SELECT keyguard.project_is_open($1) AS is_open, keyguard.acting_owns_project($1) AS owns',
        [projectId],
      );
      const { is_open: isOpen, owns } = found[0]!;
      const allowed = await access.permissionsOn(tx, principal, { ownerId: owns ? principal.userId : '', projectId, shared: [] });
      if (!isOpen || !allowed.has('secrets:create')) throw new HttpProblem('not_found', 'There is no project of that id in which you may store secrets.');
    },

    demandCurrentOrOwn: (principal, secret) => demandCurrentOrOwn(secret, principal, clock.nowMs()),

    demandRoom: (tx, principal, adding) => quotas.demandRoom(tx, principal, 'secrets', adding),

    async sealNew(principal, { name, type, value, tags, projectId, expiresAtMs }) {
      const examined = examine(type, value);
      const now = clock.nowMs();
      const secret: Secret = {
        id: randomUUID(), projectId, ownerId: principal.userId, name, type, tags, currentVersion: 1, revision: 1,
        expiresAtMs: expiresAtMs === undefined ? defaultExpiry(lives(), examined.expiresAtMs, now) : allowedExpiry(lives(), expiresAtMs, now), createdAtMs: now, updatedAtMs: now, deletedAtMs: null,
      };
      return { secret, sealed: await sealFor(secret, value), reason: null };
    },

    async sealNext(secret, value, { reason, expiresAtMs, numbers = 1 }) {
      const examined = examine(secret.type, value);
      const wanted = expiresAtMs === undefined ? undefined : allowedExpiry(lives(), expiresAtMs, clock.nowMs());
      const sealed = new Map<number, SealedValue>();
      for (let version = secret.currentVersion + 1; version <= secret.currentVersion + numbers; version += 1) {
        sealed.set(version, await sealFor({ ...secret, currentVersion: version }, value));
      }
      return (before) => {
        const currentVersion = before.currentVersion + 1;
        const envelope = sealed.get(currentVersion);
        if (envelope === undefined) return null;
        const next: Secret = {
          ...before,
          currentVersion,
          revision: before.revision + 1,
          // What a person has set stays, unless the value itself says until when it is good.
          expiresAtMs: wanted !== undefined ? wanted : examined.expiresAtMs === null ? before.expiresAtMs : longestExpiry(lives(), examined.expiresAtMs, clock.nowMs()),
          updatedAtMs: Math.max(clock.nowMs(), before.updatedAtMs),
        };
        return { secret: next, sealed: envelope, reason };
      };
    },

    async insert(tx, principal, made, more = {}) {
      const { secret } = made;
      const { rows: inserted } = await tx.query(
        `INSERT INTO keyguard.enterprise_secrets (id, project_id, owner_id, name, type, tags, current_version, revision, expires_at_ms, created_at_ms,
          updated_at_ms, mac_key_id, mac) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT DO NOTHING RETURNING id`,
        [secret.id, secret.projectId, secret.ownerId, secret.name, secret.type, secret.tags, secret.currentVersion, secret.revision,
          secret.expiresAtMs, secret.createdAtMs, secret.updatedAtMs, rowMacKey.keyId, await secretMac(rowMacKey, secret)],
      );
      if (inserted.length === 0) throw nameTaken();
      await writeVersion(tx, principal, made);
      await recorded(audit.recordIn(tx, entry(principal, 'secret.create', secret, { version: 1, type: secret.type, ...more })));
    },

    async append(tx, principal, made, action, more = {}) {
      await tx.query(`UPDATE keyguard.secret_versions SET state = 'retired' WHERE subject_type = 'secret' AND subject_id = $1 AND state = 'active'`, [made.secret.id]);
      await writeVersion(tx, principal, made);
      await writeRow(tx, made.secret);
      await recorded(audit.recordIn(tx, entry(principal, action, made.secret, { version: made.secret.currentVersion, ...more })));
    },

    async openFor(principal, id, permission, { version, allowExpired }) {
      let last: number | null = null;
      for (let tries = 0; tries < MAX_TRIES; tries += 1) {
        const { secret, sealed, wanted, told } = await asUser(sql, principal.userId, async (tx) => {
          const { secret: found } = await rows.secretOf(tx, principal, id, permission);
          const number = version ?? found.currentVersion;
          // The database is asked once more whether its user may: that somebody sees a row does not mean that they may open it.
          const { rows: sealedRows } = await tx.query<SealedRow>(
            `SELECT v.version, v.state, v.ciphertext, v.wrapped_dek, v.kek_id
              FROM keyguard.secret_versions v JOIN keyguard.enterprise_secrets s ON s.id = v.subject_id
              WHERE v.subject_type = 'secret' AND v.subject_id = $1 AND v.version = $2
                AND keyguard.acting_may_secret(s.id, s.owner_id, s.project_id, $3)`,
            [id, number, permission],
          );
          const told = await newest.rowsIn(tx, id, { withDestroyed: number !== found.currentVersion });
          return { secret: found, sealed: sealedRows[0], wanted: number, told };
        });
        // What the log said in the round before had happened by now: a row that still lags behind it was put back.
        if (last !== null && secret.currentVersion < last) throw notIntact();
        const announced = await newest.announced(id, told);
        if (announced === null || announced.currentVersion < secret.currentVersion) throw notIntact();
        if (announced.isDeleted || announced.currentVersion > secret.currentVersion) {
          // Changed between the two looks, or put back: the next look tells. A deletion leaves nothing to find, so it tells at once.
          last = announced.isDeleted ? Number.POSITIVE_INFINITY : announced.currentVersion;
          continue;
        }
        if (sealed === undefined) throw new HttpProblem('not_found', 'There is no such version.');
        const value = sealedIn(sealed);
        if (value === null) throw destroyed();
        if (announced.destroyed.has(wanted)) throw notIntact();
        if (secret.expiresAtMs !== null && secret.expiresAtMs <= clock.nowMs() && !(allowExpired && secret.ownerId === principal.userId)) {
          throw new HttpProblem('secret_expired', 'This secret has expired. Its owner can set another date, store a new value, or read it with allow_expired.');
        }
        return { secret, version: wanted, value: await openSealed(secret, wanted, value) };
      }
      throw new UnavailableError('secrets', 'This secret is being changed all the time.', { code: 'overloaded' });
    },
  };

  async function openSealed(secret: Secret, version: number, sealed: SealedValue): Promise<string> {
    try {
      return fromUtf8(await open(sealed, versionPlace(keys.deploymentId, secret, version), { keyProvider: keys.kek, primitives }));
    } catch (error) {
      if (isUnavailable(error)) throw error;
      throw notIntact();
    }
  }

  /** One new version: sealed for the number that it will have, and again where another process was faster. */
  async function nextVersion(
    principal: Principal,
    id: string,
    ifMatch: IfMatch,
    make: () => Promise<{ readonly value: string; readonly reason: string | null; readonly expiresAtMs: number | null | undefined; readonly action: string; readonly more?: Readonly<Record<string, JsonValue>> }>,
  ): Promise<HeldSecret> {
    return turns(id, async () => {
      for (let tries = 0; tries < MAX_TRIES; tries += 1) {
        const { secret } = await asUser(sql, principal.userId, (tx) => rows.secretOf(tx, principal, id, 'secrets:update'));
        demandState(secret, ifMatch);
        const { value, reason, expiresAtMs, action, more } = await make();
        // Whoever came too late is ready for more than one number the next time, or two processes could keep each other waiting.
        const next = await parts.sealNext(secret, value, { reason, expiresAtMs, numbers: Math.min(2 ** tries, MAX_NUMBERS) });
        const done = await asUser(sql, principal.userId, async (tx) => {
          const held = await rows.lockSecret(tx, principal, id, 'secrets:update');
          demandState(held.secret, ifMatch);
          demandCurrentOrOwn(held.secret, principal, clock.nowMs());
          const made = next(held.secret);
          if (made === null) return null;
          await parts.append(tx, principal, made, action, more);
          return { ...held, secret: made.secret };
        });
        if (done !== null) return done;
      }
      throw new UnavailableError('secrets', 'This secret is being changed all the time.', { code: 'overloaded' });
    });
  }

  return {
    rows,
    parts,

    async create(principal, secret) {
      const made = await parts.sealNew(principal, secret);
      return asUser(sql, principal.userId, async (tx) => {
        await parts.demandProject(tx, principal, secret.projectId);
        const permissions = await access.permissionsOn(tx, principal, { ownerId: principal.userId, projectId: secret.projectId, shared: [] });
        await parts.demandRoom(tx, principal, 1);
        await parts.insert(tx, principal, made);
        return { secret: made.secret, permissions, intact: true };
      });
    },

    read: (principal, id) => asUser(sql, principal.userId, (tx) => rows.secretOf(tx, principal, id, 'secrets:read')),

    async update(principal, id, change, ifMatch) {
      try {
        return await asUser(sql, principal.userId, async (tx) => {
          const held = await rows.lockSecret(tx, principal, id, 'secrets:update');
          const { secret } = held;
          demandState(secret, ifMatch);
          demandCurrentOrOwn(secret, principal, clock.nowMs());
          if (change.expiresAtMs !== undefined) allowedExpiry(lives(), change.expiresAtMs, clock.nowMs());
          const isRenamed = change.name !== undefined && change.name !== secret.name;
          if (isRenamed && secret.ownerId !== principal.userId) throw new HttpProblem('forbidden', 'Only its owner gives a secret another name.');
          const next: Secret = { ...secret, ...change, revision: secret.revision + 1, updatedAtMs: Math.max(clock.nowMs(), secret.updatedAtMs) };
          await writeRow(tx, next);
          await recorded(audit.recordIn(tx, entry(principal, 'secret.update', next, { changed: Object.keys(change).map((name) => (name === 'expiresAtMs' ? 'expires_at' : name)) })));
          return { ...held, secret: next };
        });
      } catch (error) {
        throw isNameTaken(error) ? nameTaken() : error;
      }
    },

    addVersion: (principal, id, { value, reason, expiresAtMs, ifMatch }) =>
      nextVersion(principal, id, ifMatch, async () => ({ value, reason, expiresAtMs, action: 'secret.add_version' })),

    async restore(principal, id, version, ifMatch) {
      return nextVersion(principal, id, ifMatch, async () => {
        // That the value has expired is no reason to keep it from becoming the current one again: it is not shown.
        const { secret, value } = await openExpired(principal, id, version);
        if (secret.currentVersion === version) throw new HttpProblem('illegal_transition', 'This version is the current one.');
        return { value, reason: `restored from version ${version}`, expiresAtMs: undefined, action: 'secret.restore_version', more: { restored_version: version } };
      });
    },

    async destroyVersion(principal, id, version) {
      await asUser(sql, principal.userId, async (tx) => {
        const { secret } = await rows.lockSecret(tx, principal, id, 'secrets:delete');
        if (secret.currentVersion === version) {
          throw new HttpProblem('illegal_transition', 'The current version can only be destroyed with the whole secret: store a new one first, or delete it.');
        }
        const { rows: found } = await tx.query<{ state: string }>(
          `SELECT state FROM keyguard.secret_versions WHERE subject_type = 'secret' AND subject_id = $1 AND version = $2`,
          [id, version],
        );
        if (found[0] === undefined) throw new HttpProblem('not_found', 'There is no such version.');
        if (found[0].state === 'destroyed') return;
        await shred(tx, id, version);
        await recorded(audit.recordIn(tx, entry(principal, 'secret.destroy_version', secret, { version })));
      });
    },

    async destroy(principal, id, ifMatch) {
      await asUser(sql, principal.userId, async (tx) => {
        const { secret } = await rows.lockSecret(tx, principal, id, 'secrets:delete');
        demandState(secret, ifMatch);
        await shred(tx, id, null);
        const now = Math.max(clock.nowMs(), secret.updatedAtMs);
        await writeRow(tx, { ...secret, revision: secret.revision + 1, updatedAtMs: now, deletedAtMs: now });
        await recorded(audit.recordIn(tx, entry(principal, 'secret.delete', secret, { version: secret.currentVersion })));
      });
    },

    async reveal(principal, id, revealing) {
      const revealed = await parts.openFor(principal, id, 'secrets:reveal', revealing);
      await parts.record([parts.revealEntry(principal, revealed)]);
      return revealed;
    },
  };

  async function openExpired(principal: Principal, id: string, version: number): Promise<Revealed> {
    return parts.openFor(principal, id, 'secrets:update', { version, allowExpired: true });
  }

  /** Without its wrapped key a value is noise for ever; and the noise goes as well. */
  async function shred(tx: SqlTransaction, id: string, version: number | null): Promise<void> {
    await tx.query(
      `UPDATE keyguard.secret_versions SET state = 'destroyed', ciphertext = NULL, wrapped_dek = NULL, kek_id = NULL, overlap_until_ms = NULL, destroyed_at_ms = $3
        WHERE subject_type = 'secret' AND subject_id = $1 AND state <> 'destroyed' AND ($2::integer IS NULL OR version = $2::integer)`,
      [id, version, clock.nowMs()],
    );
  }
}
