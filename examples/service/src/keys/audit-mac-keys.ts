/**
 * The MAC keys of the audit log, as this process knows them now: the one to write with, the one that others may have gone over to
 * already, and those of before. What they are can change while the process runs, so they are read anew each time a record is sealed.
 */
import type { ChainKeys } from '@keyguard/core/audit';
import type { AuditMacKey, Bytes } from '@keyguard/core/seams';
import { nodeMacKey, type KeyRecord, type KeyRecords } from '@keyguard/storage-node/postgres';
import type { DemandRoot } from './root-unchanged.ts';

/** {@link ChainKeys} whose members say, whenever they are read, what holds then. */
export interface AuditMacKeys extends ChainKeys {
  readonly previousMacKeys: readonly AuditMacKey[];
  /** The key to follow; that to write with where there is none. */
  readonly nextMacKey: AuditMacKey;
  /** By id, all that records may be under. */
  readonly all: ReadonlyMap<string, AuditMacKey>;
  /** Reads what the database has now. After a failure what was known is still there. */
  reload(): Promise<void>;
  /** A new key, wrapped, that nobody writes with yet. It is in use nowhere until the database has it. */
  newRecord(): Promise<KeyRecord>;
  /** To be called in the transaction that keeps it. */
  readonly demandRootIn: DemandRoot;
}

export interface AuditMacKeysOptions {
  readonly records: KeyRecords;
  /** What {@link KeyRecords.list} answered. */
  readonly kept: readonly KeyRecord[];
  readonly open: (record: KeyRecord) => Promise<Bytes>;
  readonly make: () => Promise<KeyRecord>;
  readonly demandRootIn: DemandRoot;
}

interface Known {
  readonly primary: AuditMacKey;
  readonly next: AuditMacKey | null;
  readonly previous: readonly AuditMacKey[];
}

/** @throws UsageError `key_store_unusable` */
export async function auditMacKeys({ records, kept, open, make, demandRootIn }: AuditMacKeysOptions): Promise<AuditMacKeys> {
  // By id, so that a key that was opened once is not opened again when the root has changed meanwhile.
  const all = new Map<string, AuditMacKey>();

  async function keyOf(record: KeyRecord): Promise<AuditMacKey> {
    const found = all.get(record.id);
    if (found !== undefined) return found;
    const bytes = await open(record);
    const key = nodeMacKey({ keyId: record.id, key: bytes });
    bytes.fill(0);
    all.set(record.id, key);
    return key;
  }

  async function read(from: readonly KeyRecord[]): Promise<Known> {
    const own = from.filter(({ purpose }) => purpose === 'audit-mac');
    const inState = (state: KeyRecord['state']): Promise<AuditMacKey[]> => Promise.all(own.filter((record) => record.state === state).map(keyOf));
    const [[primary], [next = null], previous] = await Promise.all([inState('primary'), inState('pre-active'), inState('decrypt-only')]);
    return { primary: primary!, next, previous };
  }

  let known = await read(kept);
  return {
    get macKey() {
      return known.primary;
    },
    get nextMacKey() {
      return known.next ?? known.primary;
    },
    get previousMacKeys() {
      return known.previous;
    },
    all,
    async reload() {
      known = await read(await records.list());
    },
    newRecord: make,
    demandRootIn,
  };
}
