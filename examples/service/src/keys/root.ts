/**
 * The root of all keys: a key file or a passphrase. It wraps the few keys of `hierarchy.ts` and yields no bytes.
 */
import { UsageError, hasCode } from '@keyguard/core/errors';
import type { KeyProvider } from '@keyguard/core/seams';
import { passphraseKey } from '@keyguard/core/vault';
import { fileKeyProvider } from '@keyguard/storage-node/file';
import type { KeyRecord } from '@keyguard/storage-node/postgres';
import type { RootKeyConfig } from '../config.ts';

const PASSPHRASE_ROOT = 'passphrase-v1';

export interface Root {
  /** Stored beside each key that it wrapped. */
  readonly rootId: string;
  readonly keyProvider: KeyProvider;
}

/**
 * The root that `records` (untrusted) were wrapped under, or a new one where there are none.
 * @throws UsageError `key_store_unusable` where it is not this root, and for a passphrase that is not the one
 */
export async function openRoot(config: RootKeyConfig, records: readonly KeyRecord[]): Promise<Root> {
  // A destroyed key has no bytes, and says nothing of the root that there is now.
  const known = records.find(({ state }) => state !== 'destroyed');
  if (config.kind === 'file') {
    if (known?.rootId === PASSPHRASE_ROOT) throw unusable('The keys in the database are under a passphrase: set KEYGUARD_PASSPHRASE to it.');
    const keyProvider = await fileKeyProvider({ path: config.path, create: known === undefined });
    if (known !== undefined && known.rootId !== keyProvider.kekId) {
      throw unusable(`The keys in the database are under another root key than ${config.path}: bring that file back, or set KEYGUARD_ROOT_KEY_FILE to it.`);
    }
    return { rootId: keyProvider.kekId, keyProvider };
  }
  if (known !== undefined && known.rootId !== PASSPHRASE_ROOT) {
    throw unusable('The keys in the database are under a root key file: set KEYGUARD_ROOT_KEY_FILE in place of KEYGUARD_PASSPHRASE.');
  }
  try {
    // Each wrapped key begins with the salt and the parameters, so that replicas need nothing but the database.
    const header = known === undefined ? {} : { header: known.wrapped };
    const { keyProvider } = await passphraseKey(config.passphrase, { kekId: PASSPHRASE_ROOT, ...header });
    return { rootId: PASSPHRASE_ROOT, keyProvider };
  } catch (error) {
    if (!hasCode(error, 'vault_open_failed')) throw error;
    throw unusable('KEYGUARD_PASSPHRASE is not the passphrase of this database.');
  }
}

function unusable(message: string): UsageError {
  return new UsageError('key_store_unusable', message);
}
