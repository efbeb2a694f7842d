/**
 * Provider keys: sealed before they are stored, bound to their row, version, project and provider, and opened for what they are for. People
 * who administer them can never read one back; neither can the role that acts for people.
 */
import { UnavailableError } from '@keyguard/core/errors';
import type { RateLimiter } from '@keyguard/core/seams';
import { asJobs, asVerifier } from '../db/as-user.ts';
import { sealedIn, type SealedRow } from '../secrets/rows.ts';
import { administering, type Administering } from './administering.ts';
import { importing, type Importing } from './importing.ts';
import { keyParts, type ApiKeysOptions } from './parts.ts';
import { createProbing } from './probing.ts';
import { rotating, type Rotating } from './rotating.ts';
import { KEYS_SEAM, KEY_COLUMNS_OF_K, type KeyRow, type StoredApiKey } from './rows.ts';

/** A key that devices use. */
export interface UsableKey {
  readonly key: StoredApiKey;
  /** Its current value, which is secret. @throws UnavailableError seam `api_keys` where it does not open */
  open(): Promise<string>;
}

export interface ApiKeys extends Administering, Rotating, Importing {
  /**
   * The key that devices of this project use; `null` where there is none. Whether it may be used is not asked here.
   * @throws UnavailableError seam `api_keys` for one that was changed or put back in the database
   */
  findDefault(projectId: string, provider: string): Promise<UsableKey | null>;
  /** Whether a key of this provider was ever stored, in whatever state it is now. */
  hasAny(provider: string): Promise<boolean>;
}

export function createApiKeys({ probeLimiter, ...options }: ApiKeysOptions & { readonly probeLimiter: RateLimiter }): ApiKeys {
  const { sql, upstreams } = options;
  const parts = keyParts(options);
  const probing = createProbing({ upstreams, limiter: probeLimiter });

  return {
    ...administering(parts, probing),
    ...rotating(parts, probing),
    ...importing(parts),

    async findDefault(projectId, provider) {
      const found = await parts.newest.settled(
        async () => {
          const { row, lastRow } = await asVerifier(sql, async (tx) => {
            const { rows } = await tx.query<KeyRow & SealedRow>(
              `SELECT ${KEY_COLUMNS_OF_K}, v.version, v.state, v.ciphertext, v.wrapped_dek, v.kek_id FROM keyguard.stored_api_keys k
                LEFT JOIN keyguard.secret_versions v ON v.subject_type = 'api_key' AND v.subject_id = k.id AND v.version = k.current_version
                WHERE k.project_id = $1 AND k.provider = $2 AND k.is_default AND k.is_active`,
              [projectId, provider],
            );
            return { row: rows[0], lastRow: rows[0] === undefined ? undefined : await parts.newest.lastRowIn(tx, rows[0].id) };
          });
          return row === undefined ? null : { key: await parts.read(row), sealed: sealedIn(row), lastRow };
        },
        () => new UnavailableError(KEYS_SEAM, 'A stored provider key is not as it was written: it was changed or put back behind our back.'),
      );
      if (found === null) return null;
      const { key, sealed } = found;
      return {
        key,
        async open() {
          if (sealed === null) throw new UnavailableError(KEYS_SEAM, 'The value of a stored provider key is not there: it was taken away behind our back.');
          return parts.sealing.open(key, key.currentVersion, sealed);
        },
      };
    },

    async hasAny(provider) {
      const { rows } = await asJobs(sql, (tx) => tx.query('SELECT 1 FROM keyguard.stored_api_keys WHERE provider = $1 LIMIT 1', [provider]));
      return rows.length > 0;
    },
  };
}
