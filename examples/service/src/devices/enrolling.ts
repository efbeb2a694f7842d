/**
 * The registry as enrollment and rotation use it: a device or a key, and the entry that says it came, are one transaction.
 */
import type { DeviceRegistry } from '@keyguard/core/seams';
import { postgresDeviceRegistry, type SqlClient } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { asVerifier } from '../db/as-user.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';

export function auditedRegistry(sql: SqlClient, keys: DeploymentKeys, audit: AuditLog): DeviceRegistry {
  const { rowMacKey } = keys;
  const registry = postgresDeviceRegistry(sql, { rowMacKey });
  return {
    findByKeyId: (keyId) => registry.findByKeyId(keyId),
    enroll: (request) =>
      asVerifier(sql, async (tx) => {
        const result = await postgresDeviceRegistry(tx, { rowMacKey }).enroll(request);
        if (result.outcome === 'enrolled') {
          const { deviceId, ownerId, projectId, keyId, status } = result.device;
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
      }),
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
