/** `/api/secrets`: values come in, and leave by reveal, by export, and once where they were generated. Nothing sealed is ever shown. */
import { Readable } from 'node:stream';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { SqlClient } from '@keyguard/storage-node/postgres';
import type { StepUpAction } from '../auth/policy.ts';
import type { Principal } from '../auth/principal.ts';
import { operation, type Answer, type Operation, type ShownOnce } from '../http/operations.ts';
import { pageJson, pageOf, pageRequest } from '../http/pagination.ts';
import { HttpProblem } from '../http/problems.ts';
import { envFiles } from './env-files.ts';
import { generate, generator, type Generated } from './generate.ts';
import { listSecrets, listVersions } from './listing.ts';
import type { HeldSecret } from './rows.ts';
import {
  createBody, expiryIn, exportBody, generated, generatedJson, importBody, importJson, importReport, listQuery, patchBody, revealBody, revealedJson,
  revealedSecret, secret, secretJson, secretParams, secretVersion, storedSecret, versionBody, versionJson, versionParams, versionsQuery,
} from './schema.ts';
import { stateOf, type SecretChange, type SecretStore } from './store.ts';

const TAG = 'Secrets';

export interface SecretOperationsOptions {
  readonly sql: SqlClient;
  readonly store: SecretStore;
  /** Throws where the settings demand a fresh second factor for `action`. */
  readonly demandStepUp: (principal: Principal, action: StepUpAction) => void;
  readonly clock?: Clock;
}

const shown = (held: HeldSecret, status: 200 | 201 = 200, made: Generated | null = null): Answer => ({
  status,
  json: { ...secretJson(held), ...(made !== null && generatedJson(made)) },
  etag: stateOf(held.secret),
});

/** What comes is taken as it is; what is to be generated is made now. */
async function valueOf(body: { readonly value?: string | undefined; readonly generate?: Parameters<typeof generate>[0] | undefined }): Promise<{ readonly value: string; readonly made: Generated | null }> {
  if (body.value !== undefined) return { value: body.value, made: null };
  const made = await generate(body.generate!);
  return { value: made.value, made };
}

export function secretOperations({ sql, store, demandStepUp, clock = systemClock }: SecretOperationsOptions): readonly Operation[] {
  const mayReveal = (principal: Principal): boolean => {
    try {
      demandStepUp(principal, 'reveal');
      return true;
    } catch (error) {
      if (error instanceof HttpProblem) return false;
      throw error;
    }
  };
  const files = envFiles({ sql, store, mayReveal });
  // A value that was generated: while it is the one that counts, and the secret is there for the caller.
  const generatedOnce: ShownOnce = {
    member: 'value',
    async isGood(principal, { id, current_version: version }) {
      try {
        return (await store.read(principal, id as string)).secret.currentVersion === version;
      } catch (error) {
        if (error instanceof HttpProblem) return false;
        throw error;
      }
    },
  };

  return [
    operation(
      {
        id: 'createSecret', action: 'secret.create', method: 'post', path: '/api/secrets', tag: TAG, access: 'secrets:create',
        summary: 'Store a secret',
        idempotent: generatedOnce,
        body: createBody,
        answers: { 201: { description: 'Stored', json: storedSecret } },
        problems: ['not_found', 'name_taken', 'quota_exceeded'],
      },
      async ({ body, principal }) => {
        const { value, made } = await valueOf(body);
        const { name, type, tags, project_id: projectId } = body;
        return shown(await store.create(principal, { name, type, value, tags, projectId, expiresAtMs: expiryIn(body, clock.nowMs()) }), 201, made);
      },
    ),
    operation(
      {
        id: 'listSecrets', action: 'secret.list', method: 'get', path: '/api/secrets', tag: TAG, access: 'secrets:read',
        summary: 'List secrets, newest first, without their values',
        query: listQuery,
        answers: { 200: { description: 'A page', json: pageOf(secret) } },
      },
      async ({ query: { limit, cursor, q, name, type, tag, project_id: projectId, expiring_before: before }, principal }) => {
        const filter = { q, name, type, tag, projectId, expiringBeforeMs: before === undefined ? undefined : Date.parse(before) };
        return { json: pageJson(await listSecrets(sql, store.rows, principal, filter, pageRequest({ limit, cursor })), secretJson) };
      },
    ),
    operation(
      {
        id: 'generateValue', action: 'secret.generate', method: 'post', path: '/api/secrets/generate', tag: TAG, access: 'secrets:create',
        summary: 'Make a password, a key or a token, and store it nowhere',
        body: generator,
        answers: { 200: { description: 'The value, kept by nobody but you', json: generated } },
        problems: ['rate_limited'],
      },
      async ({ body }) => ({ json: generatedJson(await generate(body)) }),
    ),
    operation(
      {
        id: 'importSecrets', action: 'secret.import', method: 'post', path: '/api/secrets/import', tag: TAG, access: 'secrets:create',
        summary: 'Store the variables of a .env file: all of them, or none',
        description:
          'A variable that is there under its name gets a new version. Where the caller may reveal it at this moment it is compared first, which is on record as a reveal, and stays as it is if it is the same. A dry run says what would be done.',
        body: importBody,
        answers: { 200: { description: 'What was done, or would be', json: importReport } },
        problems: ['not_found', 'secret_expired', 'name_taken', 'quota_exceeded'],
      },
      async ({ body: { text, project_id: projectId, tags, dry_run: dryRun }, principal }) => ({
        json: importJson(await files.importFile(principal, { text, projectId, tags, dryRun })),
      }),
    ),
    operation(
      {
        id: 'exportSecrets', action: 'secret.export', method: 'post', path: '/api/secrets/export', tag: TAG, access: 'secrets:reveal',
        stepUp: 'reveal',
        summary: 'Reveal the secrets of a project, or your own, as a .env file or as JSON',
        description: 'Every value is written to the audit log as revealed before any leaves. In a .env file are those that have the name of a variable.',
        body: exportBody,
        answers: { 200: { description: 'The file', types: ['text/plain', 'application/json'] } },
        problems: ['not_found', 'not_exportable', 'secret_expired', 'integrity_failed'],
      },
      async ({ body: { project_id: projectId, environment, format }, principal }) => {
        const { type, text, count } = await files.exportFile(principal, { projectId, environment, format });
        return { status: 200, stream: { type, body: Readable.from([Buffer.from(text)]) }, headers: { 'x-keyguard-secrets': String(count) } };
      },
    ),
    operation(
      {
        id: 'getSecret', action: 'secret.read', method: 'get', path: '/api/secrets/{id}', tag: TAG, access: 'secrets:read',
        summary: 'Show a secret, without its value',
        params: secretParams,
        answers: { 200: { description: 'The secret', json: secret } },
        problems: ['not_found'],
      },
      async ({ params: { id }, principal }) => shown(await store.read(principal, id)),
    ),
    operation(
      {
        id: 'updateSecret', action: 'secret.update', method: 'patch', path: '/api/secrets/{id}', tag: TAG, access: 'secrets:update',
        summary: 'Change the name, the tags or the expiry of a secret',
        description: 'Send the ETag that you have seen as If-Match, and nobody’s change is lost.',
        params: secretParams,
        body: patchBody,
        answers: { 200: { description: 'The secret as it is now', json: secret } },
        problems: ['not_found', 'name_taken', 'secret_expired', 'precondition_failed', 'integrity_failed'],
      },
      async ({ params: { id }, body, principal, ifMatch }) => {
        const expiresAtMs = expiryIn(body, clock.nowMs());
        const change: SecretChange = {
          ...(body.name !== undefined && { name: body.name }),
          ...(body.tags !== undefined && { tags: body.tags }),
          ...(expiresAtMs !== undefined && { expiresAtMs }),
        };
        return shown(await store.update(principal, id, change, ifMatch));
      },
    ),
    operation(
      {
        id: 'deleteSecret', action: 'secret.delete', method: 'delete', path: '/api/secrets/{id}', tag: TAG, access: 'secrets:delete',
        summary: 'Destroy a secret with all its versions, for ever',
        params: secretParams,
        answers: { 204: { description: 'Destroyed' } },
        problems: ['not_found', 'precondition_failed', 'integrity_failed'],
      },
      async ({ params: { id }, principal, ifMatch }) => {
        await store.destroy(principal, id, ifMatch);
        return {};
      },
    ),
    operation(
      {
        id: 'revealSecret', action: 'secret.reveal', method: 'post', path: '/api/secrets/{id}/reveal', tag: TAG, access: 'secrets:reveal',
        summary: 'Read the value of a secret',
        stepUp: 'reveal',
        description: 'The reveal is in the audit log before the value leaves.',
        params: secretParams,
        body: revealBody,
        answers: { 200: { description: 'The value', json: revealedSecret } },
        problems: ['not_found', 'secret_expired', 'version_destroyed', 'integrity_failed'],
      },
      async ({ params: { id }, body: { version, allow_expired: allowExpired }, principal }) => ({
        json: revealedJson(await store.reveal(principal, id, { version: version ?? null, allowExpired })),
      }),
    ),
    operation(
      {
        id: 'addSecretVersion', action: 'secret.add_version', method: 'post', path: '/api/secrets/{id}/versions', tag: TAG, access: 'secrets:update',
        summary: 'Give a secret a new value',
        idempotent: generatedOnce,
        description: 'Send the ETag that you have seen as If-Match, and nobody’s change is lost.',
        params: secretParams,
        body: versionBody,
        answers: { 201: { description: 'The secret with its new version', json: storedSecret } },
        problems: ['not_found', 'secret_expired', 'precondition_failed', 'integrity_failed'],
      },
      async ({ params: { id }, body, principal, ifMatch }) => {
        const { value, made } = await valueOf(body);
        return shown(await store.addVersion(principal, id, { value, reason: body.reason ?? null, expiresAtMs: expiryIn(body, clock.nowMs()), ifMatch }), 201, made);
      },
    ),
    operation(
      {
        id: 'listSecretVersions', action: 'secret.list_versions', method: 'get', path: '/api/secrets/{id}/versions', tag: TAG, access: 'secrets:read',
        summary: 'List the versions of a secret, newest first, without their values',
        params: secretParams,
        query: versionsQuery,
        answers: { 200: { description: 'A page', json: pageOf(secretVersion) } },
        problems: ['not_found'],
      },
      async ({ params: { id }, query: { limit = 50, cursor }, principal }) => ({
        json: pageJson(await listVersions(sql, store.rows, principal, id, { limit, before: cursor === undefined ? null : Number(cursor) }), versionJson),
      }),
    ),
    operation(
      {
        id: 'restoreSecretVersion', action: 'secret.restore_version', method: 'post', path: '/api/secrets/{id}/versions/{version}/restore', tag: TAG, access: 'secrets:update',
        summary: 'Make the value of an earlier version the current one, as a new version',
        idempotent: true,
        params: versionParams,
        answers: { 201: { description: 'The secret with its new version', json: secret } },
        problems: ['not_found', 'illegal_transition', 'secret_expired', 'version_destroyed', 'precondition_failed', 'integrity_failed'],
      },
      async ({ params: { id, version }, principal, ifMatch }) => shown(await store.restore(principal, id, version, ifMatch), 201),
    ),
    operation(
      {
        id: 'destroySecretVersion', action: 'secret.destroy_version', method: 'delete', path: '/api/secrets/{id}/versions/{version}', tag: TAG, access: 'secrets:delete',
        summary: 'Destroy the value of an earlier version, for ever',
        params: versionParams,
        answers: { 204: { description: 'Destroyed, now or before' } },
        problems: ['not_found', 'illegal_transition', 'integrity_failed'],
      },
      async ({ params: { id, version }, principal }) => {
        await store.destroyVersion(principal, id, version);
        return {};
      },
    ),
  ];
}
