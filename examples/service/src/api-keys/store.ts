/**
 * Provider keys: sealed before they are stored, bound to their row, project and provider, and opened for one use, a call of a
 * device of that project. People who administer them can never read one back; neither can the role that acts for people.
 */
import { randomUUID, timingSafeEqual } from 'node:crypto';
import { fromUtf8, utf8 } from '@keyguard/core/bytes';
import { RejectedError, UnavailableError } from '@keyguard/core/errors';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { open, seal, type SealedValue, type VaultPlace } from '@keyguard/core/vault';
import type { Page, PageRequest, SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import { fromBase64Url, toBase64Url } from '@keyguard/core/bytes';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asJobs, asUser, asVerifier } from '../db/as-user.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { shareProject } from '../projects/lock.ts';
import type { Projects } from '../projects/store.ts';
import type { SealedTable } from '../keys/sealed-tables.ts';

/** The project that every deployment begins with. */
export const DEFAULT_PROJECT_ID = 'default';
/** Owns what belongs to no person. */
export const SYSTEM = 'system';
const TABLE = 'stored_api_keys';
const VERSION = 1;

/** A key as it may be shown. */
export interface StoredApiKey {
  readonly id: string;
  readonly projectId: string;
  readonly provider: string;
  readonly name: string;
  readonly last4: string;
  readonly source: 'api' | 'environment';
  readonly isDefault: boolean;
  readonly isActive: boolean;
  readonly createdAtMs: number;
  readonly revokedAtMs: number | null;
}

export interface NewApiKey {
  readonly provider: string;
  readonly name: string;
  /** Secret. */
  readonly value: string;
}

export interface ApiKeys {
  /** Makes the default project where it is missing. */
  prepare(): Promise<void>;
  /**
   * Stores a key in a project and makes it the one that its devices use with the provider.
   * @throws HttpProblem `not_found`, `forbidden`, `project_archived`
   */
  create(principal: Principal, projectId: string, key: NewApiKey): Promise<StoredApiKey>;
  /** Those of the projects in which the caller may see keys, newest first. */
  list(principal: Principal, request: PageRequest): Promise<Page<StoredApiKey>>;
  /** A revoked one stays revoked. @throws HttpProblem `not_found`, `forbidden` */
  revoke(principal: Principal, id: string): Promise<StoredApiKey>;
  /**
   * Keeps what the operator set in the environment: once, and again when it changed. A key that was revoked does not come back
   * by a restart.
   */
  importFromEnvironment(provider: string, value: string): Promise<'kept' | 'stored'>;
  /** The key that devices of this project use, opened; `null` where there is none. */
  openDefault(projectId: string, provider: string): Promise<{ readonly id: string; /** Secret. */ readonly value: string } | null>;
  /** Whether a key of this provider was ever stored, in whatever state it is now. */
  hasAny(provider: string): Promise<boolean>;
}

export interface ApiKeysOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly projects: Projects;
  /** Told after every change that is durable. */
  readonly onChanged: () => void;
  readonly clock?: Clock;
}

interface MetadataRow {
  id: string;
  project_id: string;
  provider: string;
  name: string;
  last4: string;
  source: 'api' | 'environment';
  is_default: boolean;
  is_active: boolean;
  created_at_ms: unknown;
  revoked_at_ms: unknown;
}

interface SealedRow {
  id: string;
  project_id: string;
  provider: string;
  ciphertext: Uint8Array;
  wrapped_dek: Uint8Array;
  kek_id: string;
  current_version: number;
}

const METADATA = 'id, project_id, provider, name, last4, source, is_default, is_active, created_at_ms, revoked_at_ms';
const SEALED = 'id, project_id, provider, ciphertext, wrapped_dek, kek_id, current_version';

function storedKey(row: MetadataRow): StoredApiKey {
  return {
    id: row.id,
    projectId: row.project_id,
    provider: row.provider,
    name: row.name,
    last4: row.last4,
    source: row.source,
    isDefault: row.is_default,
    isActive: row.is_active,
    createdAtMs: Number(row.created_at_ms),
    revokedAtMs: row.revoked_at_ms === null ? null : Number(row.revoked_at_ms),
  };
}

/** Project and provider are in the place too: a row that is moved to another project does not open there. */
function placeIn(deploymentId: string, id: string, projectId: string, provider: string, version: number): VaultPlace {
  return { deploymentId, table: TABLE, row: id, column: 'value', version, purpose: `provider-key\n${provider}\n${projectId}` };
}

/** For the rotation of the key that wraps theirs. */
export function sealedApiKeys(deploymentId: string): SealedTable {
  return {
    name: `keyguard.${TABLE}`,
    key: [['id', 'text']],
    columns: ['t.project_id', 't.provider', 't.current_version'],
    place: ({ id, project_id: projectId, provider, current_version: version }) =>
      placeIn(deploymentId, id as string, projectId as string, provider as string, version as number),
  };
}

export function createApiKeys({ sql, keys, audit, projects, onChanged, clock = systemClock }: ApiKeysOptions): ApiKeys {
  const primitives = nodeVaultPrimitives();
  const placeOf = (id: string, projectId: string, provider: string, version: number): VaultPlace =>
    placeIn(keys.deploymentId, id, projectId, provider, version);

  async function openRow(row: SealedRow): Promise<string> {
    const sealed: SealedValue = {
      ciphertext: Uint8Array.from(row.ciphertext),
      wrappedDek: Uint8Array.from(row.wrapped_dek),
      kekId: row.kek_id,
    };
    try {
      return fromUtf8(await open(sealed, placeOf(row.id, row.project_id, row.provider, row.current_version), { keyProvider: keys.kek, primitives }));
    } catch (cause) {
      throw new UnavailableError('api_keys', 'A stored provider key does not open: it was changed behind our back.', { cause });
    }
  }

  /** Sealed before the transaction: on the embedded database everyone would wait for it. */
  async function sealNew(projectId: string, key: NewApiKey): Promise<{ readonly id: string; readonly sealed: SealedValue }> {
    const id = randomUUID();
    const sealed = await seal(utf8(key.value), placeOf(id, projectId, key.provider, VERSION), { keyProvider: keys.kek, primitives });
    return { id, sealed };
  }

  async function insert(
    tx: SqlTransaction,
    key: NewApiKey,
    { id, sealed }: { readonly id: string; readonly sealed: SealedValue },
    { projectId, ownerId, source }: { readonly projectId: string; readonly ownerId: string; readonly source: StoredApiKey['source'] },
  ): Promise<StoredApiKey> {
    await lockDefault(tx, key.provider);
    await tx.query(`UPDATE keyguard.stored_api_keys SET is_default = false WHERE project_id = $1 AND provider = $2 AND is_default`, [
      projectId,
      key.provider,
    ]);
    const { rows } = await tx.query<MetadataRow>(
      `INSERT INTO keyguard.stored_api_keys (id, project_id, owner_id, provider, name, last4, source, ciphertext, wrapped_dek, kek_id,
        current_version, is_default, created_at_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, true, $12)
        RETURNING ${METADATA}`,
      [id, projectId, ownerId, key.provider, key.name, key.value.slice(-4), source, sealed.ciphertext, sealed.wrappedDek,
        sealed.kekId, VERSION, clock.nowMs()],
    );
    return storedKey(rows[0]!);
  }

  async function demandWritable(tx: SqlTransaction, principal: Principal, projectId: string): Promise<void> {
    const { archivedAtMs } = await projects.demandIn(tx, principal, projectId, 'api_keys:write');
    if (archivedAtMs !== null) throw new HttpProblem('project_archived', 'This project is archived: nothing comes into it any more.');
  }

  /** One change of what is the default at a time. */
  async function lockDefault(tx: SqlTransaction, provider: string): Promise<void> {
    await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.default_api_key ' || $1, 0))`, [provider]);
  }

  async function newestOfEnvironment(tx: SqlTransaction, provider: string): Promise<SealedRow | null> {
    const { rows } = await tx.query<SealedRow>(
      `SELECT ${SEALED} FROM keyguard.stored_api_keys WHERE provider = $1 AND source = 'environment'
        ORDER BY created_at_ms DESC, id DESC LIMIT 1`,
      [provider],
    );
    return rows[0] ?? null;
  }

  return {
    async prepare() {
      await asJobs(sql, (tx) =>
        tx.query(
          `INSERT INTO keyguard.api_key_projects (id, owner_id, name, environment, created_at_ms) VALUES ($1, $2, $1, 'production', $3)
            ON CONFLICT (id) DO NOTHING`,
          [DEFAULT_PROJECT_ID, SYSTEM, clock.nowMs()],
        ),
      );
    },

    async create(principal, projectId, key) {
      const { userId, actor } = principal;
      // Asked before the work of sealing, and again where it counts.
      await asUser(sql, userId, (tx) => demandWritable(tx, principal, projectId));
      const made = await sealNew(projectId, key);
      const stored = await asUser(sql, userId, async (tx) => {
        await shareProject(tx, projectId);
        await demandWritable(tx, principal, projectId);
        const row = await insert(tx, key, made, { projectId, ownerId: userId, source: 'api' });
        await audit.recordIn(tx, {
          action: 'api_key.create', outcome: 'success', actor, resource: `api_key:${row.id}`, provider: key.provider, project_id: projectId,
        });
        return row;
      });
      onChanged();
      return stored;
    },

    async list(principal, { limit = 50, cursor = null }) {
      const start = cursor === null ? null : readCursor(cursor);
      const { rows } = await asUser(sql, principal.userId, async (tx) => {
        const { everywhere, projectIds } = await projects.reachIn(tx, principal, 'api_keys:read');
        return tx.query<MetadataRow>(
          `SELECT ${METADATA} FROM keyguard.stored_api_keys
            WHERE ($1::bigint IS NULL OR (created_at_ms, id) < ($1::bigint, $2::text)) AND ($4 OR project_id = ANY ($5::text[]))
            ORDER BY created_at_ms DESC, id DESC LIMIT $3`,
          [start?.[0] ?? null, start?.[1] ?? null, limit + 1, everywhere, projectIds],
        );
      });
      const items = rows.slice(0, limit).map(storedKey);
      const last = items.at(-1);
      return { items, nextCursor: rows.length > limit && last !== undefined ? writeCursor(last) : null };
    },

    async revoke(principal, id) {
      const { userId, actor } = principal;
      const revoked = await asUser(sql, userId, async (tx) => {
        const { rows: found } = await tx.query<{ project_id: string }>('SELECT project_id FROM keyguard.stored_api_keys WHERE id = $1', [id]);
        if (found[0] === undefined) throw notFound();
        await projects.demandIn(tx, principal, found[0].project_id, 'api_keys:write');
        const { rows } = await tx.query<MetadataRow>(
          `UPDATE keyguard.stored_api_keys SET is_active = false, is_default = false, revoked_at_ms = coalesce(revoked_at_ms, $2::bigint)
            WHERE id = $1 RETURNING ${METADATA}`,
          [id, clock.nowMs()],
        );
        if (rows[0] === undefined) throw notFound();
        await audit.recordIn(tx, { action: 'api_key.revoke', outcome: 'success', actor, resource: `api_key:${id}`, provider: rows[0].provider });
        return storedKey(rows[0]);
      });
      onChanged();
      return revoked;
    },

    async importFromEnvironment(provider, value) {
      const known = await asJobs(sql, (tx) => newestOfEnvironment(tx, provider));
      if (known !== null && isSame(await openRow(known), value)) return 'kept';
      const key: NewApiKey = { provider, name: 'From the environment', value };
      const made = await sealNew(DEFAULT_PROJECT_ID, key);
      const isStored = await asJobs(sql, async (tx) => {
        await lockDefault(tx, provider);
        // Another replica that starts with the same environment may have been first.
        if ((await newestOfEnvironment(tx, provider))?.id !== known?.id) return false;
        await tx.query(
          `UPDATE keyguard.stored_api_keys SET is_active = false, is_default = false, revoked_at_ms = $2
            WHERE provider = $1 AND source = 'environment' AND is_active`,
          [provider, clock.nowMs()],
        );
        const row = await insert(tx, key, made, { projectId: DEFAULT_PROJECT_ID, ownerId: SYSTEM, source: 'environment' });
        await audit.recordIn(tx, {
          action: 'api_key.import',
          outcome: 'success',
          actor: SYSTEM,
          resource: `api_key:${row.id}`,
          provider,
          project_id: DEFAULT_PROJECT_ID,
        });
        return true;
      });
      onChanged();
      return isStored ? 'stored' : 'kept';
    },

    async openDefault(projectId, provider) {
      const { rows } = await asVerifier(sql, (tx) =>
        tx.query<SealedRow>(
          `SELECT ${SEALED} FROM keyguard.stored_api_keys WHERE project_id = $1 AND provider = $2 AND is_default AND is_active`,
          [projectId, provider],
        ),
      );
      return rows[0] === undefined ? null : { id: rows[0].id, value: await openRow(rows[0]) };
    },

    async hasAny(provider) {
      const { rows } = await asJobs(sql, (tx) => tx.query('SELECT 1 FROM keyguard.stored_api_keys WHERE provider = $1 LIMIT 1', [provider]));
      return rows.length > 0;
    },
  };
}

function isSame(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}

function writeCursor({ createdAtMs, id }: StoredApiKey): string {
  return toBase64Url(utf8(JSON.stringify([createdAtMs, id])));
}

function readCursor(cursor: string): readonly [number, string] {
  try {
    const [createdAtMs, id] = JSON.parse(fromUtf8(fromBase64Url(cursor)!)) as [unknown, unknown];
    if (Number.isSafeInteger(createdAtMs) && typeof id === 'string' && !id.includes('\0')) return [createdAtMs as number, id];
  } catch {
    // Below: it is not one of ours, whatever it is.
  }
  throw new RejectedError('malformed_request', 'The cursor is not one that was handed out.');
}
