/** What comes in about secrets, and how they are shown. */
import * as z from 'zod';
import { pageQuery, time, timeJson } from '../http/pagination.ts';
import { HttpProblem } from '../http/problems.ts';
import type { ImportedVariable, ImportReport } from './env-files.ts';
import { generator, type Generated } from './generate.ts';
import type { SecretVersion } from './listing.ts';
import type { HeldSecret } from './rows.ts';
import { SHAREABLE } from './shares.ts';
import type { Revealed } from './store.ts';
import { MAX_VALUE_BYTES, SECRET_TYPES } from './types.ts';

const TEN_YEARS_S = 10 * 366 * 86_400;

// oxlint-disable-next-line no-control-regex -- a name that steers a terminal is none
const oneLine = /^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]*$/;
const name = z.string().trim().min(1).max(200).regex(oneLine, 'must be one line');
const tag = z.string().trim().min(1).max(50).regex(oneLine, 'must be one line');
const tags = z.array(tag).max(20).transform((given) => [...new Set(given)]);
const type = z.enum(SECRET_TYPES);
const projectId = z.string().min(1).max(100);
const value = z.string().min(1).refine((text) => Buffer.byteLength(text) <= MAX_VALUE_BYTES, `must have at most ${MAX_VALUE_BYTES} bytes`);
const reason = z.string().trim().min(1).max(200).regex(oneLine, 'must be one line');
const wholeNumber = z.int().min(1).max(2 ** 31 - 1);

const expiry = {
  expires_at: z.iso.datetime({ offset: true }).nullable().optional().describe('`null`: never.'),
  expires_in_s: z.int().min(1).max(TEN_YEARS_S).optional().describe('In place of `expires_at`.'),
};
const oneExpiry = [
  (body: { readonly expires_at?: string | null | undefined; readonly expires_in_s?: number | undefined }): boolean => body.expires_at === undefined || body.expires_in_s === undefined,
  'give expires_at or expires_in_s, not both',
] as const;
const valueOrGenerate = [
  (body: { readonly value?: unknown; readonly generate?: unknown }): boolean => (body.value === undefined) !== (body.generate === undefined),
  'give either value or generate',
] as const;

export const createBody = z
  .strictObject({
    name,
    type: type.default('generic'),
    value: value.optional(),
    generate: generator.optional().describe('Makes the value, which is then shown once.'),
    tags: tags.default([]),
    project_id: projectId.nullable().default(null).describe('`null`: in no project, for yourself and those with whom you share it.'),
    ...expiry,
  })
  .refine(...oneExpiry)
  .refine(...valueOrGenerate);

export const patchBody = z
  .strictObject({ name: name.optional(), tags: tags.optional(), ...expiry })
  .refine(...oneExpiry)
  .refine((body) => Object.values(body).some((one) => one !== undefined), 'give something to change');

export const versionBody = z
  .strictObject({ value: value.optional(), generate: generator.optional(), reason: reason.optional(), ...expiry })
  .refine(...oneExpiry)
  .refine(...valueOrGenerate);

export const revealBody = z.strictObject({
  version: wholeNumber.optional().describe('The current one where nothing is said.'),
  allow_expired: z.boolean().default(false).describe('Reads what has expired. For its owner alone.'),
});

export const importBody = z.strictObject({
  text: z.string().max(60 * 1024).describe('The .env file.'),
  project_id: projectId.nullable().default(null),
  tags: tags.default([]).describe('For secrets that are new.'),
  dry_run: z.boolean().default(false).describe('Reports, and writes nothing.'),
});

export const exportBody = z.strictObject({
  project_id: projectId.nullable().default(null),
  environment: z.string().min(1).max(100).nullable().default(null).describe('All projects of this environment; with project_id: that one, if it is of this environment.'),
  format: z.enum(['env', 'json']).default('env'),
});

export const listQuery = pageQuery.extend({
  q: z.string().min(1).max(100).optional().describe('In the name or in a tag.'),
  name: z.string().min(1).max(200).optional().describe('Exactly this name.'),
  type: type.optional(),
  tag: tag.optional(),
  project_id: projectId.optional(),
  expiring_before: z.iso.datetime({ offset: true }).optional(),
});

export const versionsQuery = pageQuery.extend({ cursor: z.string().regex(/^[1-9][0-9]{0,8}$/, 'is not one that was handed out').optional() });

export const secretParams = z.strictObject({ id: z.uuid() });
export const versionParams = z.strictObject({ id: z.uuid(), version: z.string().regex(/^[1-9][0-9]{0,8}$/).transform(Number) });

/** @throws HttpProblem `invalid_request` for a time that is over */
export function expiryIn(
  { expires_at: at, expires_in_s: inSeconds }: { readonly expires_at?: string | null | undefined; readonly expires_in_s?: number | undefined },
  nowMs: number,
): number | null | undefined {
  if (inSeconds !== undefined) return nowMs + inSeconds * 1000;
  if (at === undefined || at === null) return at;
  const atMs = Date.parse(at);
  if (atMs <= nowMs) throw new HttpProblem('invalid_request', 'expires_at: this time is over.');
  return atMs;
}

const permissions = SHAREABLE;

const secretMembers = {
  id: z.uuid(),
  project_id: z.string().nullable(),
  owner_id: z.string(),
  name: z.string(),
  type: z.string(),
  tags: z.array(z.string()),
  current_version: z.int(),
  expires_at: time.nullable(),
  created_at: time,
  updated_at: time,
  permissions: z.array(z.enum(permissions)).describe('What you may do with it.'),
  intact: z.boolean().describe('Whether what is shown here is as it was written; false where somebody changed it in the database.'),
};

export const secret = z.object(secretMembers).meta({ id: 'Secret' });

const madeMembers = {
  value: z.string().optional().describe('Where it was generated: shown this once, and by reveal.'),
  public_key: z.string().optional().describe('Of a generated pair of keys.'),
  entropy_bits: z.number().optional().describe('How many bits a guesser of the generated value lacks.'),
};

export const storedSecret = z.object({ ...secretMembers, ...madeMembers }).meta({ id: 'StoredSecret' });

export const revealedSecret = z
  .object({ id: z.uuid(), name: z.string(), type: z.string(), version: z.int(), expires_at: time.nullable(), value: z.string() })
  .meta({ id: 'RevealedSecret' });

export const secretVersion = z
  .object({
    version: z.int(),
    state: z.enum(['active', 'overlap', 'retired', 'destroyed']),
    created_by: z.string(),
    created_at: time,
    reason: z.string().nullable(),
    verified_at: time.nullable(),
    overlap_until: time.nullable(),
    destroyed_at: time.nullable(),
  })
  .meta({ id: 'SecretVersion' });

export const generated = z
  .object({ value: z.string(), public_key: z.string().optional(), entropy_bits: z.number() })
  .meta({ id: 'GeneratedValue' });

export const importReport = z
  .object({
    applied: z.boolean().describe('False for a dry run: nothing was written.'),
    created: z.int(),
    updated: z.int(),
    unchanged: z.int(),
    invalid: z.int(),
    variables: z.array(
      z.object({
        line: z.int(),
        name: z.string().nullable(),
        outcome: z.enum(['created', 'updated', 'unchanged', 'invalid']),
        secret_id: z.uuid().nullable(),
        problem: z.string().nullable(),
      }),
    ),
  })
  .meta({ id: 'ImportReport' });

export function secretJson({ secret: one, permissions: held, intact }: HeldSecret): z.infer<typeof secret> {
  return {
    id: one.id,
    project_id: one.projectId,
    owner_id: one.ownerId,
    name: one.name,
    type: one.type,
    tags: [...one.tags],
    current_version: one.currentVersion,
    expires_at: timeJson(one.expiresAtMs),
    created_at: timeJson(one.createdAtMs),
    updated_at: timeJson(one.updatedAtMs),
    permissions: permissions.filter((permission) => held.has(permission)),
    intact,
  };
}

export function generatedJson({ value: made, publicKey, entropyBits }: Generated): z.infer<typeof generated> {
  return { value: made, ...(publicKey !== null && { public_key: publicKey }), entropy_bits: entropyBits };
}

export function revealedJson({ secret: one, version, value: opened }: Revealed): z.infer<typeof revealedSecret> {
  return { id: one.id, name: one.name, type: one.type, version, expires_at: timeJson(one.expiresAtMs), value: opened };
}

export function versionJson(version: SecretVersion): z.infer<typeof secretVersion> {
  return {
    version: version.version,
    state: version.state,
    created_by: version.createdBy,
    created_at: timeJson(version.createdAtMs),
    reason: version.reason,
    verified_at: timeJson(version.verifiedAtMs),
    overlap_until: timeJson(version.overlapUntilMs),
    destroyed_at: timeJson(version.destroyedAtMs),
  };
}

export function importJson({ applied, variables }: ImportReport): z.infer<typeof importReport> {
  const count = (outcome: ImportedVariable['outcome']): number => variables.filter((one) => one.outcome === outcome).length;
  return {
    applied,
    created: count('created'),
    updated: count('updated'),
    unchanged: count('unchanged'),
    invalid: count('invalid'),
    variables: variables.map(({ line, name: variable, outcome, secretId, problem }) => ({ line, name: variable, outcome, secret_id: secretId, problem })),
  };
}
