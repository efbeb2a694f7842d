/** What happens to keys at a start: those of the environment come in, and those of an earlier version of this program get their MACs. */
import { randomUUID } from 'node:crypto';
import { isUnavailable, UnavailableError } from '@keyguard/core/errors';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import { isIndexed } from '../audit/announcements.ts';
import { asJobs } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import { sealedIn, type SealedRow } from '../secrets/rows.ts';
import type { KeyParts } from './parts.ts';
import { changeKey, DEFAULT_PROJECT_ID, insertKey, KEYS_SEAM, KEY_COLUMNS, KEY_COLUMNS_OF_K, SYSTEM, vouchFor, type KeyRow, type StoredApiKey } from './rows.ts';
import { destroyVersions, insertVersion } from './versions.ts';

const FIRST = 1;

export interface Importing {
  /** Makes the default project where it is missing, and vouches for the keys of before rows bore MACs. */
  prepare(): Promise<void>;
  /**
   * Keeps what the operator set in the environment: once, and again when it changed. A key that was revoked does not come back by a
   * restart, nor does a value that was replaced here.
   */
  importFromEnvironment(provider: string, value: string): Promise<'kept' | 'stored'>;
}

export function importing(parts: KeyParts): Importing {
  const { sql, keys, rowMacKey, sealing, newest, clock, onChanged } = parts;
  const tagOf = (provider: string, value: string): string => keys.hashToken(`provider-key-import\0${provider}\0${value}`);

  /**
   * A row of before: nobody could change one but by revoking it, so all but that is as the entry of its storing says. Once it was vouched
   * for, the log says a revision of it, and a row that lost its MAC is never vouched for again.
   */
  async function isOfBefore(key: StoredApiKey): Promise<boolean> {
    const word = await newest.lastWord(key.id);
    return (
      word !== null &&
      word['revision'] === undefined &&
      word['provider'] === key.provider &&
      (word['project_id'] === undefined || word['project_id'] === key.projectId) &&
      !(word['action'] === 'api_key.revoke' && key.isActive) &&
      [key.baseUrl, key.options.deployment, key.options.apiVersion, key.expiresAtMs, key.rotateEveryDays, key.overlapSeconds].every((one) => one === null) &&
      key.currentVersion === FIRST
    );
  }

  async function tagOfStored(key: StoredApiKey): Promise<string | null> {
    if (key.source !== 'environment') return null;
    const { rows } = await asJobs(sql, (tx) =>
      tx.query<SealedRow>(`SELECT version, state, ciphertext, wrapped_dek, kek_id FROM keyguard.secret_versions WHERE subject_type = 'api_key' AND subject_id = $1 AND version = $2`, [key.id, FIRST]),
    );
    const sealed = rows[0] === undefined ? null : sealedIn(rows[0]);
    return sealed === null ? null : tagOf(key.provider, await sealing.open(key, FIRST, sealed));
  }

  async function adopt(row: KeyRow): Promise<void> {
    const key = await parts.read(row);
    if (!(await isOfBefore(key))) return;
    let importTag: string | null;
    try {
      importTag = await tagOfStored(key);
    } catch (error) {
      // It does not open: nobody vouches for it.
      if (isUnavailable(error) && error.seam === KEYS_SEAM) return;
      throw error;
    }
    await asJobs(sql, async (tx) => {
      const { rows } = await tx.query<KeyRow>(`SELECT ${KEY_COLUMNS} FROM keyguard.stored_api_keys WHERE id = $1 AND mac IS NULL AND revision = $2 FOR UPDATE`, [key.id, key.revision]);
      // Another replica that starts was first.
      if (rows.length === 0) return;
      const vouched = await vouchFor(tx, rowMacKey, key, importTag);
      if (!key.isActive) await destroyVersions(tx, key.id, clock.nowMs());
      await parts.recordIn(tx, SYSTEM, 'api_key.adopt', vouched);
    });
  }

  async function newestOfEnvironment(tx: SqlTransaction, provider: string): Promise<StoredApiKey | null> {
    const { rows } = await tx.query<KeyRow>(
      `SELECT ${KEY_COLUMNS} FROM keyguard.stored_api_keys WHERE provider = $1 AND source = 'environment' ORDER BY created_at_ms DESC, id DESC LIMIT 1`,
      [provider],
    );
    return rows[0] === undefined ? null : parts.read(rows[0]);
  }

  async function revokeBefore(tx: SqlTransaction, provider: string, now: number): Promise<readonly StoredApiKey[]> {
    const { rows } = await tx.query<KeyRow>(`SELECT ${KEY_COLUMNS} FROM keyguard.stored_api_keys WHERE provider = $1 AND source = 'environment' AND is_active ORDER BY id FOR UPDATE`, [provider]);
    const revoked: StoredApiKey[] = [];
    for (const row of rows) {
      revoked.push(await changeKey(tx, rowMacKey, await parts.read(row), { isActive: false, isDefault: false, revokedAtMs: now }));
      await destroyVersions(tx, row.id, now);
    }
    return revoked;
  }

  return {
    async prepare() {
      const { rows } = await asJobs(sql, async (tx) => {
        await tx.query(
          `INSERT INTO keyguard.api_key_projects (id, owner_id, name, environment, created_at_ms) VALUES ($1, $2, $1, 'production', $3)
            ON CONFLICT (id) DO NOTHING`,
          [DEFAULT_PROJECT_ID, SYSTEM, clock.nowMs()],
        );
        // One of which the log says nothing is nobody's to vouch for.
        return tx.query<KeyRow>(
          `SELECT ${KEY_COLUMNS_OF_K} FROM keyguard.stored_api_keys k WHERE k.mac IS NULL
            AND EXISTS (SELECT FROM keyguard.secret_audit_logs l WHERE keyguard.announcement(l.entry) = 'row api_key:' || k.id AND ${isIndexed('l.entry')})`,
        );
      });
      for (const row of rows) await adopt(row);
    },

    async importFromEnvironment(provider, value) {
      const known = await asJobs(sql, (tx) => newestOfEnvironment(tx, provider));
      if (known !== null && !known.intact) throw new UnavailableError(KEYS_SEAM, 'The stored key of the environment is not as it was written: it was changed behind our back.');
      const importTag = tagOf(provider, value);
      if (known?.importTag === importTag) return 'kept';
      const now = clock.nowMs();
      const key: Omit<StoredApiKey, 'intact'> = {
        id: randomUUID(), projectId: DEFAULT_PROJECT_ID, ownerId: SYSTEM, provider, name: 'From the environment', last4: value.slice(-4), source: 'environment',
        baseUrl: null, options: { deployment: null, apiVersion: null }, currentVersion: FIRST, isDefault: true, isActive: true, rotateEveryDays: null,
        overlapSeconds: null, rotatedAtMs: now, expiresAtMs: null, lastUsedAtMs: null, importTag, revision: FIRST, createdAtMs: now, revokedAtMs: null,
      };
      // Before the transaction: on the embedded database everyone would wait for it.
      const sealed = await sealing.seal(key, FIRST, value);
      const isStored = await asJobs(sql, async (tx) => {
        await parts.lockDefault(tx, provider);
        // Another replica that starts with the same environment may have been first.
        if ((await newestOfEnvironment(tx, provider))?.id !== known?.id) return false;
        const revoked = await revokeBefore(tx, provider, now);
        const displaced = await parts.displaceIn(tx, DEFAULT_PROJECT_ID, provider).catch((cause: unknown) => {
          if (!(cause instanceof HttpProblem)) throw cause;
          throw new UnavailableError(KEYS_SEAM, 'The key that is in use was changed behind our back: start without this one in the environment, and revoke that one first.', { cause });
        });
        const made = await insertKey(tx, rowMacKey, key);
        await insertVersion(tx, key.id, { version: FIRST, sealed, last4: key.last4, createdBy: SYSTEM, reason: null, verifiedAtMs: null }, now);
        for (const one of revoked) await parts.recordIn(tx, SYSTEM, 'api_key.revoke', one);
        for (const one of displaced) await parts.recordIn(tx, SYSTEM, 'api_key.displace', one, { in_favour_of: key.id });
        await parts.recordIn(tx, SYSTEM, 'api_key.import', made, { last4: key.last4 });
        return true;
      });
      onChanged();
      return isStored ? 'stored' : 'kept';
    },
  };
}
