/** `/api/service-accounts`. A token is shown when it is made, and never again. */
import * as z from 'zod';
import type { Clock } from '@keyguard/core/seams';
import { isAddressRange } from '../http/addresses.ts';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import { printable } from '../http/text.ts';
import { PERMISSION_NAMES } from '../roles/permissions.ts';
import type { AccountRecord, NewAccount, ServiceAccounts } from './store.ts';

const TAG = 'Service accounts';
const MAX_OVERLAP_SECONDS = 7 * 24 * 60 * 60;

const name = printable(1, 100);
const scopes = z.array(z.enum(PERMISSION_NAMES)).min(1).max(PERMISSION_NAMES.length).describe('The most that the account may ever do, whatever it owns and whatever roles it holds.');
const ipAllowlist = z
  .array(z.string().max(64).refine(isAddressRange, 'is neither an IP address nor a CIDR range'))
  .min(1)
  .max(100)
  .nullable()
  .describe('Addresses and CIDR ranges from which its tokens count. Null: from anywhere.');

const serviceAccount = z
  .object({
    id: z.uuid(),
    name: z.string(),
    owner_id: z.string(),
    token_prefix: z.string().describe('What its token begins with, after kgsa_. No secret.'),
    previous_token_expires_at: time.nullable().describe('Until when the token before this one counts as well.'),
    scopes: z.array(z.string()),
    ip_allowlist: z.array(z.string()).nullable(),
    created_at: time,
    expires_at: time.nullable(),
    last_used_at: time.nullable().describe('To the minute.'),
    disabled_at: time.nullable(),
    disabled_by: z.string().nullable(),
    intact: z.boolean().describe('Whether the row bears its MAC. False: somebody changed it in the database, and its tokens open nothing.'),
  })
  .meta({ id: 'ServiceAccount' });
const withToken = z.object({ ...serviceAccount.shape, token: z.string().describe('Shown this once.') });

export interface ServiceAccountOperationsOptions {
  readonly accounts: ServiceAccounts;
  readonly clock: Clock;
}

export function serviceAccountOperations({ accounts, clock }: ServiceAccountOperationsOptions): readonly Operation[] {
  const expiresAt = time.nullable().refine((end) => end === null || Date.parse(end) > clock.nowMs(), 'is not in the future');
  const createBody = z.strictObject({ name, scopes, ip_allowlist: ipAllowlist.default(null), expires_at: expiresAt.default(null) });
  const updateBody = z
    .strictObject({ name: name.optional(), scopes: scopes.optional(), ip_allowlist: ipAllowlist.optional(), expires_at: expiresAt.optional() })
    .refine((body) => Object.keys(body).length > 0, 'names nothing to change');
  const rotateBody = z.strictObject({
    overlap_s: z.int().min(0).max(MAX_OVERLAP_SECONDS).default(0).describe('For how long the old token counts as well. 0: not at all.'),
  });

  const onOne = { tag: TAG, access: 'person', params: idParams } as const;

  return [
    operation(
      {
        id: 'listServiceAccounts', action: 'service_account.list', method: 'get', path: '/api/service-accounts', tag: TAG, access: 'person',
        summary: 'List service accounts, newest first',
        description: 'One’s own; for administrators, all.',
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(serviceAccount) } },
      },
      async ({ principal, query }) => ({ json: pageJson(await accounts.list(principal, pageRequest(query)), accountJson) }),
    ),
    operation(
      {
        id: 'createServiceAccount', action: 'service_account.create', method: 'post', path: '/api/service-accounts', tag: TAG, access: 'person',
        idempotent: { member: 'token', isGood: (principal, { id, token_prefix: prefix }) => accounts.countsBy(principal, id as string, prefix as string) },
        summary: 'Make a service account',
        description:
          'A service account is somebody of its own: it sees what it made, what is shared with it, and what its roles grant, within its scopes. It gets nothing of its maker’s, and never administers.',
        body: createBody,
        answers: { 201: { description: 'The account, with its token, shown this once', json: withToken } },
        problems: ['quota_exceeded'],
      },
      async ({ principal, body }) => {
        const account: NewAccount = { name: body.name, scopes: body.scopes, ipAllowlist: body.ip_allowlist, expiresAtMs: msOf(body.expires_at) };
        const made = await accounts.create(principal, account);
        return { status: 201, json: { ...accountJson(made.account), token: made.token }, etag: String(made.account.version) };
      },
    ),
    operation(
      {
        ...onOne, id: 'getServiceAccount', action: 'service_account.read', method: 'get', path: '/api/service-accounts/{id}',
        summary: 'Show one service account',
        answers: { 200: { description: 'The account', json: serviceAccount } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => answer(await accounts.get(principal, params.id)),
    ),
    operation(
      {
        ...onOne, id: 'updateServiceAccount', action: 'service_account.update', method: 'patch', path: '/api/service-accounts/{id}',
        summary: 'Change a service account of one’s own',
        body: updateBody,
        answers: { 200: { description: 'The account as it is now', json: serviceAccount } },
        problems: ['not_found', 'precondition_failed'],
      },
      async ({ principal, params, body, ifMatch }) => {
        const change: Partial<NewAccount> = {
          ...(body.name !== undefined && { name: body.name }),
          ...(body.scopes !== undefined && { scopes: body.scopes }),
          ...(body.ip_allowlist !== undefined && { ipAllowlist: body.ip_allowlist }),
          ...(body.expires_at !== undefined && { expiresAtMs: msOf(body.expires_at) }),
        };
        return answer(await accounts.update(principal, params.id, change, ifMatch));
      },
    ),
    operation(
      {
        ...onOne, id: 'rotateServiceAccountToken', action: 'service_account.rotate', method: 'post', path: '/api/service-accounts/{id}/rotate',
        summary: 'Make a new token for a service account of one’s own',
        body: rotateBody,
        answers: { 200: { description: 'The account, with its new token, shown this once', json: withToken } },
        problems: ['not_found'],
      },
      async ({ principal, params, body }) => {
        const made = await accounts.rotate(principal, params.id, body.overlap_s * 1000);
        return { json: { ...accountJson(made.account), token: made.token }, etag: String(made.account.version) };
      },
    ),
    operation(
      {
        ...onOne, id: 'disableServiceAccount', action: 'service_account.disable', method: 'post', path: '/api/service-accounts/{id}/disable',
        summary: 'Refuse the tokens of a service account',
        description: 'For its owner and for administrators.',
        answers: { 200: { description: 'The account as it is now', json: serviceAccount } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => answer(await accounts.disable(principal, params.id)),
    ),
    operation(
      {
        ...onOne, id: 'enableServiceAccount', action: 'service_account.enable', method: 'post', path: '/api/service-accounts/{id}/enable',
        summary: 'Accept the tokens of a service account again',
        description: 'For administrators, and for its owner where nobody else has disabled it.',
        answers: { 200: { description: 'The account as it is now', json: serviceAccount } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => answer(await accounts.enable(principal, params.id)),
    ),
    operation(
      {
        ...onOne, id: 'deleteServiceAccount', action: 'service_account.delete', method: 'delete', path: '/api/service-accounts/{id}',
        summary: 'Delete a service account',
        description: 'For its owner and for administrators. What it owns stays, and is reached by nobody but who was given it; its id is never used again.',
        answers: { 204: { description: 'Deleted' } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => {
        await accounts.remove(principal, params.id);
        return {};
      },
    ),
  ];
}

function msOf(end: string | null): number | null {
  return end === null ? null : Date.parse(end);
}

function answer(one: AccountRecord): { readonly json: object; readonly etag: string } {
  return { json: accountJson(one), etag: String(one.version) };
}

function accountJson(one: AccountRecord): z.infer<typeof serviceAccount> {
  return {
    id: one.id,
    name: one.name,
    owner_id: one.ownerId,
    token_prefix: one.tokenPrefix,
    previous_token_expires_at: timeJson(one.previousExpiresAtMs),
    scopes: [...one.scopes],
    ip_allowlist: one.ipAllowlist === null ? null : [...one.ipAllowlist],
    created_at: timeJson(one.createdAtMs),
    expires_at: timeJson(one.expiresAtMs),
    last_used_at: timeJson(one.lastUsedAtMs),
    disabled_at: timeJson(one.disabled?.atMs ?? null),
    disabled_by: one.disabled?.by ?? null,
    intact: one.intact,
  };
}
