/**
 * What goes into the audit log, and how: changes append inside their own transaction; refusals, sign-ins and proxied calls are
 * grouped with those of others and awaited before the answer leaves.
 */
import type { AuditEntry, AuditSink, JsonValue } from '@keyguard/core/seams';
import type { RejectionEvent } from '@keyguard/server-verifier';
import { isRejected } from '@keyguard/core/errors';
import { postgresAuditSink, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import { currentRequest } from '../http/request-context.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';

export type ServiceAuditSink = AuditSink<SqlTransaction>;

export interface AuditLog {
  readonly sink: ServiceAuditSink;
  /** Appends `entry`, with address and id of the running request, in the caller's transaction. MUST be its last statement. */
  recordIn(tx: SqlTransaction, entry: AuditEntry): Promise<void>;
  /** Appends `entry` likewise, in a transaction shared with other callers'; durable when it resolves. */
  record(entry: AuditEntry): Promise<void>;
  /** For entries that are written when their request may be over: appends what it is given. */
  recordAsIs(entry: AuditEntry): Promise<void>;
}

/** Names this deployment's chain. */
export function auditOrigin(deploymentId: string): string {
  return `keyguard-${deploymentId}`;
}

export function auditLog(sql: SqlClient, keys: DeploymentKeys): AuditLog {
  const sink = postgresAuditSink(sql, { origin: auditOrigin(keys.deploymentId), macKey: keys.auditMacKey });
  return {
    sink,
    async recordIn(tx, entry) {
      await currentRequest()?.beforeEntry?.(tx);
      await sink.appendIn(tx, [withRequest(entry)]);
    },
    async record(entry) {
      await sink.append([withRequest(entry)]);
    },
    async recordAsIs(entry) {
      await sink.append([entry]);
    },
  };
}

function withRequest(entry: AuditEntry): AuditEntry {
  const request = currentRequest();
  return request === undefined ? entry : { ...entry, ip: request.ip, request_id: request.requestId };
}

/**
 * The entry of a refusal by the verifier, or `null` for one that is not written down: an address over its limit (a flood must not
 * fill the log), and an outage, which is the operator's and in the log of the process.
 */
export function refusalEntry({ error, method, path, keyId, deviceId }: RejectionEvent): AuditEntry | null {
  if (!isRejected(error) || (error.code === 'rate_limited' && keyId === null)) return null;
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
