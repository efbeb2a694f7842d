/** What the rooms of this slice have in common: whose a key is, how its row is held while it changes, and how that is written down. */
import type { AuditEntry, Clock, JsonValue } from '@keyguard/core/seams';
import type { RowMacKey, SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { Projects } from '../projects/store.ts';
import type { Permission } from '../roles/permissions.ts';
import { newestKeys, type NewestKeys } from './newest.ts';
import { changeKey, keyIn, KEY_COLUMNS, type KeyRow, type StoredApiKey } from './rows.ts';
import { keySealing, type KeySealing } from './sealing.ts';
import type { KeyUpstreams } from './upstreams.ts';
import type { RotationSettings } from './versions.ts';

export interface ApiKeysOptions {
  readonly sql: SqlClient;
  readonly keys: Pick<DeploymentKeys, 'deploymentId' | 'kek' | 'rowMacKey' | 'auditMac' | 'hashToken'>;
  readonly audit: AuditLog;
  readonly projects: Projects;
  readonly upstreams: KeyUpstreams;
  /** What holds where a key says nothing. */
  readonly rotation: () => RotationSettings;
  /** Told after every change that is durable. */
  readonly onChanged: () => void;
  readonly clock: Clock;
}

export interface KeyParts extends ApiKeysOptions {
  readonly rowMacKey: RowMacKey;
  readonly sealing: KeySealing;
  readonly newest: NewestKeys;
  readonly read: (row: KeyRow) => Promise<StoredApiKey>;
  /**
   * The key of this id, where `principal`, for whom `tx` acts, has `permission` on its project.
   * @throws HttpProblem `not_found` where they may not know of it, else `forbidden`
   */
  heldIn(tx: SqlTransaction, principal: Principal, id: string, permission: Permission): Promise<StoredApiKey>;
  /** Likewise, to be written: its row is locked until the transaction ends, in whatever state it is. */
  lockIn(tx: SqlTransaction, principal: Principal, id: string): Promise<StoredApiKey>;
  /** Likewise, for one that is as it was written and as the log says last. @throws HttpProblem `integrity_failed` as well */
  lockNewestIn(tx: SqlTransaction, principal: Principal, id: string): Promise<StoredApiKey>;
  /** One change of what is the default at a time. To be held before the rows of keys are. */
  lockDefault(tx: SqlTransaction, provider: string): Promise<void>;
  /** Takes the default of a project and provider away from who has it now, and answers with that key. */
  displaceIn(tx: SqlTransaction, projectId: string, provider: string): Promise<readonly StoredApiKey[]>;
  /** In the transaction that has changed the key. MUST be followed by nothing but further entries. */
  recordIn(tx: SqlTransaction, actor: string, action: string, key: StoredApiKey, more?: Readonly<Record<string, JsonValue>>): Promise<void>;
}

/** What every entry about a key says. Of a value it says at most the last four characters. */
export function keyEntry(actor: string, action: string, key: StoredApiKey, more: Readonly<Record<string, JsonValue>> = {}): AuditEntry {
  return {
    action, outcome: 'success', actor, resource: `api_key:${key.id}`, provider: key.provider, project_id: key.projectId, version: key.currentVersion, ...more,
  };
}

/** @throws HttpProblem `illegal_transition` */
export function demandActive(key: StoredApiKey): void {
  if (!key.isActive) throw new HttpProblem('illegal_transition', 'This key is revoked, for ever: store another one.');
}

export function keyParts(options: ApiKeysOptions): KeyParts {
  const { sql, keys, audit, projects } = options;
  const { rowMacKey } = keys;
  const newest = newestKeys({ sql, origin: audit.origin, auditMac: keys.auditMac });
  const read = (row: KeyRow): Promise<StoredApiKey> => keyIn(rowMacKey, row);

  async function one(tx: SqlTransaction, principal: Principal, id: string, permission: Permission, lock: '' | 'FOR UPDATE'): Promise<StoredApiKey> {
    const { rows } = await tx.query<KeyRow>(`SELECT ${KEY_COLUMNS} FROM keyguard.stored_api_keys WHERE id = $1 ${lock}`, [id]);
    if (rows[0] === undefined) throw notFound();
    await projects.demandIn(tx, principal, rows[0].project_id, permission);
    return read(rows[0]);
  }

  const parts: KeyParts = {
    ...options,
    rowMacKey,
    sealing: keySealing(keys),
    newest,
    read,
    heldIn: (tx, principal, id, permission) => one(tx, principal, id, permission, ''),

    async lockIn(tx, principal, id) {
      // First without the lock: to who may not change it a locked row is not there, and they are to hear why.
      await one(tx, principal, id, 'api_keys:write', '');
      return one(tx, principal, id, 'api_keys:write', 'FOR UPDATE');
    },

    async lockNewestIn(tx, principal, id) {
      const key = await parts.lockIn(tx, principal, id);
      await newest.demandNewestIn(tx, key);
      return key;
    },

    async lockDefault(tx, provider) {
      await tx.query(`SELECT pg_advisory_xact_lock(hashtextextended('keyguard.default_api_key ' || $1, 0))`, [provider]);
    },

    async displaceIn(tx, projectId, provider) {
      const { rows } = await tx.query<KeyRow>(
        `SELECT ${KEY_COLUMNS} FROM keyguard.stored_api_keys WHERE project_id = $1 AND provider = $2 AND is_default FOR UPDATE`,
        [projectId, provider],
      );
      const displaced: StoredApiKey[] = [];
      for (const row of rows) {
        const key = await read(row);
        await newest.demandNewestIn(tx, key);
        displaced.push(await changeKey(tx, rowMacKey, key, { isDefault: false }));
      }
      return displaced;
    },

    recordIn: (tx, actor, action, key, more = {}) => audit.recordIn(tx, keyEntry(actor, action, key, { revision: key.revision, ...more })),
  };
  return parts;
}
