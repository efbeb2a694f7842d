/** Provider keys as they go over the wire. A value comes in and never goes out. */
import * as z from 'zod';
import { pageQuery, time, timeJson } from '../http/pagination.ts';
import { HttpProblem } from '../http/problems.ts';
import { printable } from '../http/text.ts';
import { PROBE_CODES, type ProbeOutcome } from '../llm/probe.ts';
import { PROVIDERS } from '../llm/providers.ts';
import { projectId } from '../projects/operations.ts';
import { DEFAULT_PROJECT_ID, type StoredApiKey } from './rows.ts';
import { dueOf, type KeyVersion, type RotationSettings } from './versions.ts';

const MAX_DAYS = 3650;
const MAX_OVERLAP_S = 30 * 24 * 60 * 60;

const provider = z.enum(PROVIDERS.map(({ name }) => name));
// What a header can hold; a pasted line break is a mistake that would show much later.
const value = z.string().regex(/^[\x21-\x7e]{8,512}$/, 'must be 8 to 512 printable characters without spaces');
const name = printable(1, 100);
const reason = printable(1, 200);
// Both stand in paths and queries as they are.
const deployment = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'must be the name of a deployment');
const apiVersion = z.string().regex(/^[a-z0-9][a-z0-9-]{0,39}$/, 'must be a version such as 2024-10-21');
const overlap = z.int().min(0).max(MAX_OVERLAP_S);
const expiresAt = z.iso.datetime({ offset: true }).nullable();

const rotationPolicy = z
  .strictObject({
    every_days: z.int().min(1).max(MAX_DAYS).nullable().describe('How old the value may be before its rotation is due; null for any age.'),
    overlap_s: overlap.nullable().default(null).describe('For how long a value that is replaced can be expected to be good at the provider; null: as the settings say.'),
  })
  .nullable();

export const createBody = z
  .strictObject({
    project_id: projectId.default(DEFAULT_PROJECT_ID).describe('Whose devices use it. Left out: the project that every deployment begins with.'),
    provider,
    name: name.optional(),
    value,
    base_url: z.string().max(500).nullable().default(null).describe('Where it is sent, among the origins that the operator allows; for ever. Left out: where the operator’s configuration sends keys of this provider.'),
    deployment: deployment.nullable().default(null).describe('Of providers that have deployments: the only one that is called with this key.'),
    api_version: apiVersion.nullable().default(null).describe('Likewise: for calls that name none.'),
    rotation_policy: rotationPolicy.default(null).describe('Null: as the settings say.'),
    expires_at: expiresAt.default(null).describe('From when on it is not used any more.'),
    is_default: z.boolean().default(true).describe('Whether the devices of its project use it from now on, in place of the one that they use now.'),
    verify: z.boolean().default(false).describe('Whether to ask the provider first, and store nothing that it refuses.'),
  })
  .superRefine((body, context) => {
    const takes = PROVIDERS.find((one) => one.name === body.provider)?.confinement !== undefined;
    for (const member of ['deployment', 'api_version'] as const) {
      if (!takes && body[member] !== null) context.addIssue({ code: 'custom', path: [member], message: 'is not for keys of this provider' });
    }
  });

export const patchBody = z
  .strictObject({ name: name.optional(), rotation_policy: rotationPolicy.optional(), expires_at: expiresAt.optional() })
  .refine((body) => Object.keys(body).length > 0, 'names nothing to change');

const replacing = {
  overlap_s: overlap.optional().describe('For how long the value that is replaced can be expected to be good at the provider. Left out: as the key or the settings say.'),
  reason: reason.optional(),
  verify: z.boolean().default(true).describe('Whether to ask the provider first, and change nothing where it refuses the value.'),
  expires_at: expiresAt.optional().describe('Of the key from now on. Left out: as it is; to be given where that time is over.'),
};
export const rotateBody = z.strictObject({ value, ...replacing });
export const restoreBody = z.strictObject(replacing);

export const listQuery = pageQuery.extend({
  project_id: projectId.optional(),
  provider: provider.optional(),
  rotation_due: z.enum(['true', 'false']).optional().describe('Only keys in use whose rotation is due, or only the others.'),
});

export const apiKey = z
  .object({
    id: z.uuid(),
    project_id: z.string(),
    provider: z.string(),
    name: z.string(),
    last4: z.string().describe('The last four characters of the value, which is never shown.'),
    source: z.enum(['api', 'environment']),
    base_url: z.string().nullable().describe('Where it is sent; null: where the operator’s configuration sends keys of this provider.'),
    deployment: z.string().nullable(),
    api_version: z.string().nullable(),
    is_default: z.boolean().describe('Whether the devices of its project use it.'),
    is_active: z.boolean(),
    current_version: z.int(),
    rotation_policy: z.object({ every_days: z.int().nullable(), overlap_s: z.int().nullable() }).nullable(),
    rotated_at: time.describe('When the current version took over.'),
    next_rotation_at: time.nullable(),
    rotation_due: z.boolean(),
    expires_at: time.nullable(),
    last_used_at: time.nullable().describe('By a device; some seconds late.'),
    created_at: time,
    revoked_at: time.nullable(),
    intact: z.boolean().describe('Whether what is shown here is as it was written; false where somebody changed it in the database. Such a key is not used.'),
  })
  .meta({ id: 'ApiKey' });

export const apiKeyVersion = z
  .object({
    version: z.int(),
    state: z.enum(['active', 'overlap', 'retired', 'destroyed']),
    last4: z.string(),
    created_by: z.string(),
    created_at: time,
    reason: z.string().nullable(),
    verified_at: time.nullable().describe('When the provider took it, before it was put into use.'),
    overlap_until: time.nullable(),
    retired_at: time.nullable(),
    destroyed_at: time.nullable(),
  })
  .meta({ id: 'ApiKeyVersion' });

export const apiKeyTest = z
  .object({
    ok: z.boolean(),
    status: z.int().nullable().describe('With which status the provider answered; null where it did not.'),
    latency_ms: z.int(),
    checked_at: time,
    code: z.enum(PROBE_CODES),
  })
  .meta({ id: 'ApiKeyTest' });

/** @throws HttpProblem `invalid_request` for a time that is over */
export function expiryIn(given: string | null | undefined, nowMs: number): number | null | undefined {
  if (given === undefined || given === null) return given;
  const atMs = Date.parse(given);
  if (atMs <= nowMs) throw new HttpProblem('invalid_request', 'expires_at: this time is over.');
  return atMs;
}

/** As the row of a key has it. */
export function policyIn(given: z.infer<typeof rotationPolicy>): Pick<StoredApiKey, 'rotateEveryDays' | 'overlapSeconds'> {
  return given === null ? { rotateEveryDays: null, overlapSeconds: null } : { rotateEveryDays: given.every_days ?? 0, overlapSeconds: given.overlap_s };
}

export function apiKeyJson(key: StoredApiKey, settings: RotationSettings, nowMs: number): z.infer<typeof apiKey> {
  const { isDue, nextMs } = dueOf(key, settings, nowMs);
  return {
    id: key.id,
    project_id: key.projectId,
    provider: key.provider,
    name: key.name,
    last4: key.last4,
    source: key.source,
    base_url: key.baseUrl,
    deployment: key.options.deployment,
    api_version: key.options.apiVersion,
    is_default: key.isDefault,
    is_active: key.isActive,
    current_version: key.currentVersion,
    rotation_policy: key.rotateEveryDays === null ? null : { every_days: key.rotateEveryDays === 0 ? null : key.rotateEveryDays, overlap_s: key.overlapSeconds },
    rotated_at: timeJson(key.rotatedAtMs),
    next_rotation_at: timeJson(nextMs),
    rotation_due: isDue,
    expires_at: timeJson(key.expiresAtMs),
    last_used_at: timeJson(key.lastUsedAtMs),
    created_at: timeJson(key.createdAtMs),
    revoked_at: timeJson(key.revokedAtMs),
    intact: key.intact,
  };
}

export function apiKeyVersionJson(one: KeyVersion): z.infer<typeof apiKeyVersion> {
  return {
    version: one.version,
    state: one.state,
    last4: one.last4,
    created_by: one.createdBy,
    created_at: timeJson(one.createdAtMs),
    reason: one.reason,
    verified_at: timeJson(one.verifiedAtMs),
    overlap_until: timeJson(one.overlapUntilMs),
    retired_at: timeJson(one.retiredAtMs),
    destroyed_at: timeJson(one.destroyedAtMs),
  };
}

export function apiKeyTestJson({ ok, status, latencyMs, code, checkedAtMs }: ProbeOutcome & { readonly checkedAtMs: number }): z.infer<typeof apiKeyTest> {
  return { ok, status, latency_ms: latencyMs, checked_at: timeJson(checkedAtMs), code };
}
