/**
 * The registry as enrollment and rotation use it: a device or a key, and the entry that says it came, are one transaction.
 */
import type { DeviceRegistry } from '@keyguard/core/seams';
import { postgresDeviceRegistry, type SqlClient, type SqlTransaction } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asVerifier } from '../db/as-user.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { shareProject } from '../projects/lock.ts';

/** Rolls back an enrollment by a code that was good, for somebody or something that is no more. */
class ShutError extends Error {
  override readonly name = 'ShutError';
}

/** What a code was made for may have ended since: its owner may be disabled, its project archived. */
async function demandOpen(tx: SqlTransaction, ownerId: string | null, projectId: string | null): Promise<void> {
  if (projectId !== null) await shareProject(tx, projectId);
  const { rows } = await tx.query<{ is_open: boolean }>(
    `SELECT ($2::text IS NULL OR keyguard.project_is_open($2)) AND NOT EXISTS (SELECT FROM keyguard.disabled_people WHERE user_id = $1) AS is_open`,
    [ownerId, projectId],
  );
  if (!rows[0]!.is_open) throw new ShutError();
}

export function auditedRegistry(sql: SqlClient, keys: DeploymentKeys, audit: AuditLog): DeviceRegistry {
  const { rowMacKey } = keys;
  const registry = postgresDeviceRegistry(sql, { rowMacKey });
  return {
    findByKeyId: (keyId) => registry.findByKeyId(keyId),
    enroll: async (request) => {
      const enrolling = asVerifier(sql, async (tx) => {
        const result = await postgresDeviceRegistry(tx, { rowMacKey }).enroll(request);
        if (result.outcome === 'enrolled') {
          const { deviceId, ownerId, projectId, keyId, status } = result.device;
          await demandOpen(tx, ownerId, projectId);
          await audit.recordIn(tx, {
            action: 'device.enroll',
            outcome: 'success',
            actor: `device:${deviceId}`,
            resource: `device:${deviceId}`,
            device_id: deviceId,
            key_id: keyId,
            owner_id: ownerId,
            project_id: projectId,
            status,
          });
        }
        return result;
      });
      try {
        return await enrolling;
      } catch (error) {
        if (error instanceof ShutError) return { outcome: 'rejected' };
        throw error;
      }
    },
    rotate: (request) =>
      asVerifier(sql, async (tx) => {
        const result = await postgresDeviceRegistry(tx, { rowMacKey }).rotate(request);
        // A repeat changes nothing, and was written down when it was none.
        if (result.outcome === 'rotated') {
          const { deviceId, keyId } = result.device;
          await audit.recordIn(tx, {
            action: 'device.key_rotated',
            outcome: 'success',
            actor: `device:${deviceId}`,
            resource: `device:${deviceId}`,
            device_id: deviceId,
            key_id: keyId,
            old_key_id: request.oldKeyId,
            old_key_retires_at_ms: request.nowMs + request.overlapMs,
            with_code: request.codeHash !== null,
          });
        }
        return result;
      }),
  };
}
