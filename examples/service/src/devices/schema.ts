import { createHash } from 'node:crypto';
import type { DeviceRecord, EnrollmentCode, RotationCode } from '@keyguard/storage-node/postgres';
import * as z from 'zod';
import { DEFAULT_PROJECT_ID } from '../api-keys/rows.ts';
import { isAddressRange } from '../http/addresses.ts';
import { pageQuery, time, timeJson } from '../http/pagination.ts';
import { modelPatterns } from '../llm/model-patterns.ts';
import { projectId } from '../projects/operations.ts';

// Control characters, bidirectional overrides, and what else makes a label read as something it is not: as enrollment has it.
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/u;
const MAX_CODE_LIFE_SECONDS = 30 * 24 * 60 * 60;
const MAX_ROTATION_CODE_LIFE_SECONDS = 24 * 60 * 60;
const DEFAULT_CODE_LIFE_SECONDS = 15 * 60;

export const label = z
  .string()
  .transform((text) => text.normalize('NFC').trim())
  .refine((text) => [...text].length >= 1 && [...text].length <= 64 && !UNPRINTABLE.test(text), 'must be 1 to 64 printable characters');

export const createCodeBody = z.strictObject({
  project_id: projectId.default(DEFAULT_PROJECT_ID).describe('Into which project its devices come. Left out: the one that every deployment begins with.'),
  label: label.optional(),
  /** By default what its maker may grant: administrators' devices need no approval. */
  auto_approve: z.boolean().optional(),
  max_uses: z.int().min(1).max(10_000).default(1),
  expires_in_s: z.int().min(10).max(MAX_CODE_LIFE_SECONDS).default(DEFAULT_CODE_LIFE_SECONDS),
});

export const createRotationCodeBody = z.strictObject({
  expires_in_s: z.int().min(10).max(MAX_ROTATION_CODE_LIFE_SECONDS).default(DEFAULT_CODE_LIFE_SECONDS),
});

export const updateDeviceBody = z
  .strictObject({
    label: label.nullable().optional(),
    requests_per_minute: z.int().min(1).max(1_000_000).nullable().optional().describe('Null: as the settings say.'),
    ip_allowlist: z
      .array(z.string().max(64).refine(isAddressRange, 'is neither an IP address nor a CIDR range'))
      .min(1)
      .max(100)
      .nullable()
      .optional()
      .describe('Addresses and CIDR ranges from which it may call. Null: from anywhere.'),
    allowed_models: modelPatterns.optional(),
  })
  .refine((body) => Object.keys(body).length > 0, 'names nothing to change');

export const devicePageQuery = pageQuery.extend({
  status: z.enum(['pending', 'active', 'suspended', 'revoked']).optional(),
});

export const enrollmentCode = z
  .object({
    id: z.uuid(),
    label: z.string().nullable(),
    project_id: z.string().nullable(),
    auto_approve: z.boolean(),
    max_uses: z.int(),
    uses: z.int(),
    created_by: z.string(),
    created_at: time,
    expires_at: time,
    revoked_at: time.nullable(),
  })
  .meta({ id: 'EnrollmentCode' });

export const rotationCode = z
  .object({ id: z.uuid(), device_id: z.uuid(), created_by: z.string(), created_at: time, expires_at: time })
  .meta({ id: 'RotationCode' });

/** With the code itself, which is shown when it is made and never again. */
export function withCode<Shape extends z.ZodRawShape>(schema: z.ZodObject<Shape>): z.ZodType {
  return z.object({ ...schema.shape, code: z.string() });
}

const deviceSchema = z
  .object({
    id: z.uuid(),
    key_id: z.string().nullable(),
    label: z.string().nullable(),
    status: z.enum(['pending', 'active', 'suspended', 'revoked']),
    owner_id: z.string().nullable(),
    project_id: z.string().nullable(),
    requests_per_minute: z.int().nullable(),
    ip_allowlist: z.array(z.string()).readonly().nullable(),
    allowed_models: z.array(z.string()).readonly().nullable(),
    created_at: time,
    pending_until: time.nullable(),
    approved_by: z.string().nullable(),
    approved_at: time.nullable(),
    changed_at: time,
    last_seen_at: time.nullable(),
    last_ip: z.string().nullable(),
    intact: z.boolean().describe('Whether the row bears its MAC. False: somebody changed it in the database.'),
  })
  .meta({ id: 'Device' });
export { deviceSchema as device };

/** The code itself is shown once, by whoever made it. */
export function codeJson(code: EnrollmentCode): z.infer<typeof enrollmentCode> {
  return {
    id: code.id,
    label: code.label,
    project_id: code.projectId,
    auto_approve: code.autoApprove,
    max_uses: code.maxUses,
    uses: code.uses,
    created_by: code.createdBy,
    created_at: timeJson(code.createdAtMs),
    expires_at: timeJson(code.expiresAtMs),
    revoked_at: timeJson(code.revokedAtMs),
  };
}

/** Which state of a device somebody has seen: all that can be changed of it, and not when it was seen last. */
export function deviceTag(device: DeviceRecord): string {
  const { last_seen_at: _seen, last_ip: _ip, ...state } = deviceJson(device);
  return createHash('sha256').update(JSON.stringify(state)).digest('base64url');
}

/** Likewise: the code itself is shown once. */
export function rotationCodeJson(code: RotationCode): z.infer<typeof rotationCode> {
  return {
    id: code.id,
    device_id: code.deviceId,
    created_by: code.createdBy,
    created_at: timeJson(code.createdAtMs),
    expires_at: timeJson(code.expiresAtMs),
  };
}

export function deviceJson(device: DeviceRecord): z.infer<typeof deviceSchema> {
  return {
    id: device.deviceId,
    key_id: device.keyId,
    label: device.label,
    status: device.status,
    owner_id: device.ownerId,
    project_id: device.projectId,
    requests_per_minute: device.requestsPerMinute,
    ip_allowlist: device.ipAllowlist,
    allowed_models: device.allowedModels,
    created_at: timeJson(device.createdAtMs),
    pending_until: timeJson(device.pendingUntilMs),
    approved_by: device.approvedBy,
    approved_at: timeJson(device.approvedAtMs),
    changed_at: timeJson(device.changedAtMs),
    last_seen_at: timeJson(device.lastSeenAtMs),
    last_ip: device.lastIp,
    intact: device.intact,
  };
}
