/** The value of a provider key: the place that it is sealed for, and the one place where it is opened. */
import { fromUtf8, utf8 } from '@keyguard/core/bytes';
import { isUnavailable, UnavailableError } from '@keyguard/core/errors';
import { open, seal, type SealedValue, type VaultPlace } from '@keyguard/core/vault';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { VersionedKind } from '../secrets/rows.ts';
import { KEYS_SEAM, KEYS_TABLE, type StoredApiKey } from './rows.ts';

/** What of a key its values are bound to. None of it ever changes. */
export type PlacedKey = Pick<StoredApiKey, 'id' | 'projectId' | 'provider' | 'baseUrl'> & { readonly options: StoredApiKey['options'] };

/**
 * A value is sealed for its key, version, project and provider, and for the address and the deployment where there are any: what is
 * put into another row, or a row that is pointed somewhere else, does not open. The place is that of the key, whichever table keeps the
 * bytes: they were in its row once. Nothing in the purpose can hold a line break.
 */
export function placeOf(deploymentId: string, { id, projectId, provider, baseUrl, options: { deployment, apiVersion } }: PlacedKey, version: number): VaultPlace {
  const confined = deployment !== null || apiVersion !== null;
  const where = baseUrl === null && !confined ? '' : `\n${JSON.stringify([baseUrl, deployment, apiVersion])}`;
  return { deploymentId, table: KEYS_TABLE, row: id, column: 'value', version, purpose: `provider-key\n${provider}\n${projectId}${where}` };
}

/** For the rotation of the key that wraps theirs. */
export function versionsOfKeys(deploymentId: string): VersionedKind {
  return {
    columns: ['k.id AS key_id', 'k.project_id AS key_project_id', 'k.provider', 'k.base_url', 'k.deployment', 'k.api_version'],
    join: `LEFT JOIN keyguard.${KEYS_TABLE} k ON t.subject_type = 'api_key' AND k.id = t.subject_id`,
    place: (row) =>
      row['key_id'] === null
        ? null
        : placeOf(
            deploymentId,
            {
              id: row['key_id'] as string,
              projectId: row['key_project_id'] as string,
              provider: row['provider'] as string,
              baseUrl: row['base_url'] as string | null,
              options: { deployment: row['deployment'] as string | null, apiVersion: row['api_version'] as string | null },
            },
            row['version'] as number,
          ),
  };
}

export interface KeySealing {
  /** MUST NOT be called in a transaction: on the embedded database everyone would wait for it. */
  seal(key: PlacedKey, version: number, value: string): Promise<SealedValue>;
  /**
   * The value, which is secret. Likewise.
   * @throws UnavailableError seam `api_keys` where it is not what was sealed for this place
   */
  open(key: PlacedKey, version: number, sealed: SealedValue): Promise<string>;
}

export function keySealing({ deploymentId, kek }: Pick<DeploymentKeys, 'deploymentId' | 'kek'>): KeySealing {
  const options = { keyProvider: kek, primitives: nodeVaultPrimitives() };
  return {
    seal: (key, version, value) => seal(utf8(value), placeOf(deploymentId, key, version), options),
    async open(key, version, sealed) {
      try {
        return fromUtf8(await open(sealed, placeOf(deploymentId, key, version), options));
      } catch (cause) {
        if (isUnavailable(cause)) throw cause;
        throw new UnavailableError(KEYS_SEAM, 'A stored provider key does not open: it was changed behind our back.', { cause });
      }
    },
  };
}
