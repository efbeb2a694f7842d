/**
 * What goes into the audit log, and how: changes append inside their own transaction; refusals, sign-ins and proxied calls are
 * grouped with those of others and awaited before the answer leaves.
 */
import type { AuditEntry, AuditMacKey, AuditSink, JsonValue } from '@keyguard/core/seams';
import type { RejectionEvent } from '@keyguard/server-verifier';
import { isRejected, isUnavailable, UnavailableError } from '@keyguard/core/errors';
import { postgresAuditSink, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { currentRequest } from '../http/request-context.ts';
import type { AuditMacKeys } from '../keys/audit-mac-keys.ts';
import { auditOrigin } from './chains.ts';

export { auditOrigin } from './chains.ts';

export type ServiceAuditSink = AuditSink<SqlTransaction>;

const SEAM = 'audit_log';

export interface AuditLog {
  /** Names the chain that is written to. */
  readonly origin: string;
  readonly sink: ServiceAuditSink;
  /** Appends `entry`, with address and id of the running request, in the caller's transaction. MUST be its last statement. */
  recordIn(tx: SqlTransaction, entry: AuditEntry): Promise<void>;
  /** Appends `entry` likewise, in a transaction shared with other callers'; durable when it resolves. */
  record(entry: AuditEntry): Promise<void>;
  /** For entries that are written when their request may be over: appends what it is given. */
  recordAsIs(entry: AuditEntry): Promise<void>;
  /** Nothing more is appended by this process, and so nothing more is done that must be on record. */
  halt(reason: string): void;
  /** Why, where it was halted. */
  haltedBecause(): string | null;
}

export interface AuditLogKeys {
  readonly deploymentId: string;
  readonly auditMacKey: AuditMacKey;
  /** Left out: the key stays what it is. */
  readonly auditMac?: Pick<AuditMacKeys, 'macKey' | 'nextMacKey' | 'previousMacKeys' | 'reload'>;
}

export interface AuditLogOptions {
  /** The present chain; the first one of the deployment where nothing is said. */
  readonly origin?: string;
  /** Within how many milliseconds an entry must be written. Default 5,000. */
  readonly withinMs?: number;
}

export function auditLog(sql: SqlClient, keys: AuditLogKeys, options: AuditLogOptions = {}): AuditLog {
  const { origin = auditOrigin(keys.deploymentId), withinMs = 5000 } = options;
  const { auditMac = { macKey: keys.auditMacKey, nextMacKey: keys.auditMacKey, previousMacKeys: [], reload: async () => {} } } = keys;
  const sink = postgresAuditSink(sql, {
    origin,
    // Read whenever a record is sealed: which keys there are changes while this process runs.
    get macKey() {
      return auditMac.macKey;
    },
    get nextMacKey() {
      return auditMac.nextMacKey;
    },
    get previousMacKeys() {
      return auditMac.previousMacKeys;
    },
  });
  let haltedBecause: string | null = null;

  function refuseHalted(): void {
    if (haltedBecause !== null) throw new UnavailableError(SEAM, haltedBecause);
  }

  async function append(entry: AuditEntry): Promise<void> {
    refuseHalted();
    try {
      await within(withinMs, sink.append([entry]));
    } catch (error) {
      if (!isUnknownKey(error)) throw error;
      // Another process has gone over to a key that this one has not heard of yet.
      await auditMac.reload();
      await within(withinMs, sink.append([entry]));
    }
  }

  return {
    origin,
    sink,
    async recordIn(tx, entry) {
      refuseHalted();
      await currentRequest()?.beforeEntry?.(tx);
      try {
        await sink.appendIn(tx, [withRequest(entry)]);
      } catch (error) {
        // Not waited for: nothing else may happen inside somebody's transaction. The next one has the key.
        if (isUnknownKey(error)) auditMac.reload().catch(() => {});
        throw error;
      }
    },
    async record(entry) {
      await append(withRequest(entry));
      const request = currentRequest();
      if (request !== undefined && entry.outcome === 'refused') request.refusal.isOnRecord = true;
    },
    recordAsIs: append,
    halt(reason) {
      haltedBecause ??= reason;
    },
    haltedBecause: () => haltedBecause,
  };
}

const isUnknownKey = (error: unknown): boolean => isUnavailable(error) && error.seam === 'audit_mac_key';

async function within<T>(ms: number, work: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new UnavailableError(SEAM, `The audit log did not answer within ${ms} ms.`)), ms);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

function withRequest(entry: AuditEntry): AuditEntry {
  const request = currentRequest();
  if (request === undefined) return entry;
  const { ip, requestId, session } = request;
  return { ...(session.id !== null && { session_id: session.id }), ...entry, ip, request_id: requestId };
}

/** The entry of a refusal by the verifier, or `null` for an outage, which is the operator's and in the log of the process. */
export function refusalEntry({ error, method, path, keyId, deviceId }: RejectionEvent): AuditEntry | null {
  if (!isRejected(error)) return null;
  const optional: Record<string, JsonValue> = {};
  if (error.detail !== undefined) optional['detail'] = error.detail;
  if (keyId !== null) optional[deviceId === null ? 'claimed_key_id' : 'key_id'] = keyId;
  if (deviceId !== null) optional['device_id'] = deviceId;
  return {
    action: 'request.refused',
    outcome: 'refused',
    actor: deviceId === null ? 'unknown' : `device:${deviceId}`,
    code: error.code,
    method,
    path,
    ...optional,
  };
}
