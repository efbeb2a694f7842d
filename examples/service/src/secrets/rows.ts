/** The row of a secret as this slice reads it: whose it is, what the caller may do with it, and whether it is as it was written. */
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { SealedValue, VaultPlace } from '@keyguard/core/vault';
import { isIntact, rowMac, type RowField, type RowMacKey, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { SealedTable } from '../keys/sealed-tables.ts';
import type { Access } from '../roles/access.ts';
import type { Permission } from '../roles/permissions.ts';
import { sharedWith, type OnTamperedShare } from './shares.ts';
import type { SecretType } from './types.ts';

export const SECRETS_TABLE = 'enterprise_secrets';
export const VERSIONS_TABLE = 'secret_versions';

/** What is known of a secret beside its values. */
export interface Secret {
  readonly id: string;
  readonly projectId: string | null;
  readonly ownerId: string;
  readonly name: string;
  readonly type: SecretType;
  readonly tags: readonly string[];
  readonly currentVersion: number;
  /** Another one after every change. */
  readonly revision: number;
  readonly expiresAtMs: number | null;
  readonly createdAtMs: number;
  readonly updatedAtMs: number;
  readonly deletedAtMs: number | null;
}

export interface SecretRow {
  id: string;
  project_id: string | null;
  owner_id: string;
  name: string;
  type: SecretType;
  tags: readonly string[];
  current_version: number;
  revision: number;
  expires_at_ms: unknown;
  created_at_ms: unknown;
  updated_at_ms: unknown;
  deleted_at_ms: unknown;
  mac_key_id: string;
  mac: Uint8Array;
}

export const SECRET_COLUMNS = `id, project_id, owner_id, name, type, tags, current_version, revision, expires_at_ms, created_at_ms, updated_at_ms,
  deleted_at_ms, mac_key_id, mac`;

const timeOrNull = (value: unknown): number | null => (value === null ? null : Number(value));

export function secretIn(row: SecretRow): Secret {
  return {
    id: row.id,
    projectId: row.project_id,
    ownerId: row.owner_id,
    name: row.name,
    type: row.type,
    tags: row.tags,
    currentVersion: row.current_version,
    revision: row.revision,
    expiresAtMs: timeOrNull(row.expires_at_ms),
    createdAtMs: Number(row.created_at_ms),
    updatedAtMs: Number(row.updated_at_ms),
    deletedAtMs: timeOrNull(row.deleted_at_ms),
  };
}

function secretFields(secret: Secret): readonly RowField[] {
  return [secret.id, secret.projectId, secret.ownerId, secret.name, secret.type, secret.tags, secret.currentVersion, secret.revision,
    secret.expiresAtMs, secret.createdAtMs, secret.updatedAtMs, secret.deletedAtMs];
}

/** The MAC that the row of `secret` must bear. */
export function secretMac(rowMacKey: RowMacKey, secret: Secret): Promise<Uint8Array> {
  return rowMac(rowMacKey, SECRETS_TABLE, secretFields(secret));
}

/**
 * Where a version of a secret lives. Owner and project are in it: neither a version that is put into another row, nor a row that is
 * given to another owner or project, opens.
 */
export function versionPlace(deploymentId: string, { id, ownerId, projectId }: Pick<Secret, 'id' | 'ownerId' | 'projectId'>, version: number): VaultPlace {
  return { deploymentId, table: VERSIONS_TABLE, row: id, column: 'ciphertext', version, purpose: JSON.stringify(['secret', ownerId, projectId]) };
}

/** One kind of what has versions: what else is read of a version of it, and where that was sealed; `null` for one of another kind. */
export type VersionedKind = Pick<SealedTable, 'columns' | 'place'> & { readonly join: `LEFT JOIN ${string}` };

/** What a rotation of the key encryption key must know of all versions, whatever they are of. */
export function sealedVersions(kinds: readonly VersionedKind[]): SealedTable {
  return {
    name: `keyguard.${VERSIONS_TABLE}`,
    key: [['subject_type', 'text'], ['subject_id', 'text'], ['version', 'integer']],
    columns: kinds.flatMap(({ columns }) => columns),
    join: kinds.map(({ join }) => join).join(' ') as `LEFT JOIN ${string}`,
    place: (row) => kinds.map(({ place }) => place(row)).find((place) => place !== null) ?? null,
  };
}

export function versionsOfSecrets(deploymentId: string): VersionedKind {
  return {
    columns: ['s.id', 's.owner_id', 's.project_id'],
    join: `LEFT JOIN keyguard.${SECRETS_TABLE} s ON t.subject_type = 'secret' AND s.id = t.subject_id`,
    place: ({ id, owner_id: ownerId, project_id: projectId, version }) =>
      id === null ? null : versionPlace(deploymentId, { id: id as string, ownerId: ownerId as string, projectId: projectId as string | null }, version as number),
  };
}

export interface SealedRow {
  version: number;
  state: 'active' | 'overlap' | 'retired' | 'destroyed';
  ciphertext: Uint8Array | null;
  wrapped_dek: Uint8Array | null;
  kek_id: string | null;
}

/** `null` where the value was destroyed. */
export function sealedIn({ ciphertext, wrapped_dek, kek_id }: SealedRow): SealedValue | null {
  if (ciphertext === null || wrapped_dek === null || kek_id === null) return null;
  return { ciphertext: Uint8Array.from(ciphertext), wrappedDek: Uint8Array.from(wrapped_dek), kekId: kek_id };
}

/** What is answered about a secret or a value that somebody changed in the database. */
export function notIntact(): HttpProblem {
  return new HttpProblem('integrity_failed', 'What is stored is not what was written: it was changed, moved or put back in the database. Nothing of it is released.');
}

/** A secret, and what somebody may do with it. */
export interface HeldSecret {
  readonly secret: Secret;
  readonly permissions: ReadonlySet<Permission>;
  /** Whether the row is as this service wrote it. */
  readonly intact: boolean;
}

export interface SecretRows {
  /**
   * The secrets in `rows` that `principal`, for whom `tx` acts as kg_app, may know of, each with all that they may do with it.
   * Decides by itself: rows that a policy should have hidden are left out.
   */
  held(tx: SqlTransaction, principal: Principal, rows: readonly SecretRow[]): Promise<readonly HeldSecret[]>;
  /**
   * The secret of this id, with what `principal`, for whom `tx` acts as kg_app, may do with it, `permission` among it.
   * @throws HttpProblem `not_found` where they may not know that it is there, `forbidden` where they may know and not do that, and
   *   `integrity_failed` for a row that was changed in the database, unless all that is wanted is to see it
   */
  secretOf(tx: SqlTransaction, principal: Principal, id: string, permission: Permission): Promise<HeldSecret>;
  /** Likewise, with the row locked until the transaction ends, for a change that `permission` allows. */
  lockSecret(tx: SqlTransaction, principal: Principal, id: string, permission: Permission): Promise<HeldSecret>;
}

export interface SecretRowsOptions {
  readonly access: Access;
  readonly rowMacKey: RowMacKey;
  readonly onTamperedShare?: OnTamperedShare;
  readonly clock?: Clock;
}

export function secretRows({ access, rowMacKey, onTamperedShare, clock = systemClock }: SecretRowsOptions): SecretRows {
  const shared = sharedWith({ rowMacKey, access, clock, ...(onTamperedShare !== undefined && { onTampered: onTamperedShare }) });

  async function held(tx: SqlTransaction, principal: Principal, rows: readonly SecretRow[]): Promise<readonly HeldSecret[]> {
    const secrets = rows.map(secretIn);
    const shares = await shared(tx, principal.userId, 'secret', secrets);
    const found: HeldSecret[] = [];
    // What roles grant depends on the project alone: a page asks once for each project.
    const asked = new Map<string, ReadonlySet<Permission>>();
    for (const [i, secret] of secrets.entries()) {
      const { ownerId, projectId } = secret;
      const sharedHere = shares.get(secret.id) ?? [];
      const key = JSON.stringify([ownerId === principal.userId, projectId, [...sharedHere].toSorted()]);
      const permissions = asked.get(key) ?? (await access.permissionsOn(tx, principal, { ownerId, projectId, shared: sharedHere }));
      asked.set(key, permissions);
      if (!permissions.has('secrets:read')) continue;
      const { mac_key_id: macKeyId, mac } = rows[i]!;
      found.push({ secret, permissions, intact: await isIntact(rowMacKey, SECRETS_TABLE, secretFields(secret), { macKeyId, mac }) });
    }
    return found;
  }

  async function one(tx: SqlTransaction, principal: Principal, id: string, permission: Permission, lock: '' | 'FOR UPDATE'): Promise<HeldSecret> {
    const { rows } = await tx.query<SecretRow>(
      `SELECT ${SECRET_COLUMNS} FROM keyguard.enterprise_secrets WHERE id = $1 AND deleted_at_ms IS NULL ${lock}`,
      [id],
    );
    const [found] = await held(tx, principal, rows);
    if (found === undefined) throw notFound();
    if (!found.permissions.has(permission)) throw new HttpProblem('forbidden', `You may see this secret, but have no ${permission} on it.`);
    if (permission !== 'secrets:read' && !found.intact) throw notIntact();
    return found;
  }

  return {
    held,
    secretOf: (tx, principal, id, permission) => one(tx, principal, id, permission, ''),
    async lockSecret(tx, principal, id, permission) {
      // First without the lock: to who may not change it a locked row is not there, and they are to hear why.
      await one(tx, principal, id, permission, '');
      return one(tx, principal, id, permission, 'FOR UPDATE');
    },
  };
}
