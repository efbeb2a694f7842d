/**
 * The registry as enrollment uses it: a device and the entry that says it came are one transaction.
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
  };
}
