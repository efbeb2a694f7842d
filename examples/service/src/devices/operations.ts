/**
 * Devices, and the codes with which they enroll and replace their keys, as people administer them. What a caller sees is decided by
 * the policies; every change and its audit entry are one transaction.
 */
import type { AuditEntry, Clock, JsonValue } from '@keyguard/core/seams';
import { systemClock, webCryptoRandom } from '@keyguard/core/system';
import { generateEnrollmentCode, hashEnrollmentCode } from '@keyguard/server-verifier/enrollment-code';
import { generateRotationCode, hashRotationCode } from '@keyguard/server-verifier/rotation-code';
import {
  postgresDeviceDirectory,
  postgresEnrollmentCodes,
  postgresRotationCodes,
  type DeviceDirectory,
  type DeviceMove,
  type DeviceMoveOutcome,
  type DeviceReach,
  type DeviceSettings,
  type RotationCodeOutcome,
  type SqlClient,
  type SqlTransaction,
} from '@keyguard/storage-node/postgres';
import { DEFAULT_PROJECT_ID } from '../api-keys/rows.ts';
import type { AuditLog } from '../audit/log.ts';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageQuery, pageRequest } from '../http/pagination.ts';
import { demandMatch } from '../http/preconditions.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { shareProject } from '../projects/lock.ts';
import type { Projects } from '../projects/store.ts';
import type { ReachAccess } from '../roles/access.ts';
import type { Quotas } from '../settings/quotas.ts';
import { codeJson, createCodeBody, createRotationCodeBody, device, deviceJson, devicePageQuery, deviceTag, enrollmentCode, rotationCode, rotationCodeJson, updateDeviceBody, withCode } from './schema.ts';

const TAG = 'Devices';

export interface DeviceOperationsOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly access: ReachAccess;
  readonly projects: Projects;
  readonly quotas: Quotas;
  /** Told of every device that was changed, once that is durable and before it is acknowledged. */
  readonly onChanged: (deviceId: string) => void;
  /** Told, after that, of every device that may not call any more. */
  readonly onShut: (deviceId: string) => void;
  readonly clock?: Clock;
}

const MOVES: readonly DeviceMove[] = ['approve', 'suspend', 'resume', 'revoke'];

/** `/api/enrollment-codes` and `/api/devices`. */
export function deviceOperations({ sql, keys, audit, access, projects, quotas, onChanged, onShut, clock = systemClock }: DeviceOperationsOptions): readonly Operation[] {
  const { rowMacKey } = keys;
  const directoryIn = (tx: SqlTransaction): DeviceDirectory => postgresDeviceDirectory(tx, { rowMacKey, clock });
  const codes = postgresEnrollmentCodes(sql, { rowMacKey, clock });

  /** The project in which everybody begins is everybody's; into another come the devices of those who may put some there. */
  async function demandOpenProject(tx: SqlTransaction, principal: Principal, projectId: string): Promise<void> {
    await shareProject(tx, projectId);
    const { archivedAtMs } = await projects.demandIn(tx, principal, projectId, 'devices:write');
    if (archivedAtMs !== null) throw new HttpProblem('project_archived', 'This project is archived: nothing comes into it any more.');
  }

  /** Where `principal` sees devices of others: who may shut some sees them too. */
  async function seenBy(tx: SqlTransaction, principal: Principal): Promise<DeviceReach> {
    const [reads, writes] = [await access.reachOf(tx, principal, 'devices:read'), await access.reachOf(tx, principal, 'devices:write')];
    return { everywhere: reads.everywhere || writes.everywhere, projectIds: [...reads.projectIds, ...writes.projectIds] };
  }

  const approvesItself = ({ isAdministrator }: Principal, { auto_approve: wanted }: { readonly auto_approve?: boolean | undefined }): boolean => wanted ?? isAdministrator;

  /** Whether a code that was shown in `json` still opens something. */
  async function isOpen(userId: string, table: 'enrollment_codes' | 'rotation_codes', condition: string, json: Readonly<Record<string, unknown>>): Promise<boolean> {
    const { rows } = await asUser(sql, userId, (tx) =>
      tx.query(`SELECT 1 FROM keyguard.${table} WHERE id = $1 AND expires_at_ms > $2 AND ${condition}`, [json['id'], clock.nowMs()]),
    );
    return rows.length > 0;
  }

  const createCode = operation(
    {
      id: 'createEnrollmentCode', action: 'enrollment_code.create', method: 'post', path: '/api/enrollment-codes', tag: TAG, access: 'devices:write',
      summary: 'Make a code with which devices enroll',
      idempotent: { member: 'code', isGood: ({ userId }, json) => isOpen(userId, 'enrollment_codes', 'uses < max_uses AND revoked_at_ms IS NULL', json) },
      stepUp: (principal, body) => (approvesItself(principal, body) ? 'approve' : null),
      body: createCodeBody,
      answers: { 201: { description: 'The code, shown this once', json: withCode(enrollmentCode) } },
      problems: ['not_found', 'project_archived', 'quota_exceeded'],
    },
    async ({ principal, body }) => {
      const { userId, actor, isAdministrator } = principal;
      // A device that nobody has to approve is approved by whoever makes its code, and only administrators approve.
      if (!isAdministrator && body.auto_approve === true) throw new HttpProblem('forbidden', 'Only an administrator makes codes for devices that need no approval.');
      const code = generateEnrollmentCode(webCryptoRandom());
      const created = await asUser(sql, userId, async (tx) => {
        if (body.project_id !== DEFAULT_PROJECT_ID) await demandOpenProject(tx, principal, body.project_id);
        await quotas.demandRoom(tx, principal, 'enrollment_codes');
        const made = await postgresEnrollmentCodes(tx, { rowMacKey, clock }).create({
          codeHash: hashEnrollmentCode(code)!,
          createdBy: userId,
          forUserId: userId,
          projectId: body.project_id,
          label: body.label ?? null,
          maxUses: body.max_uses,
          autoApprove: approvesItself(principal, body),
          expiresAtMs: clock.nowMs() + body.expires_in_s * 1000,
        });
        await audit.recordIn(tx, {
          action: 'enrollment_code.create',
          outcome: 'success',
          actor,
          resource: `enrollment_code:${made.id}`,
          project_id: made.projectId,
          auto_approve: made.autoApprove,
          max_uses: made.maxUses,
        });
        return made;
      });
      return { status: 201, json: { ...codeJson(created), code } };
    },
  );

  const listCodes = operation(
    {
      id: 'listEnrollmentCodes', action: 'enrollment_code.list', method: 'get', path: '/api/enrollment-codes', tag: TAG, access: 'devices:read',
      summary: 'List enrollment codes, newest first, without the codes themselves',
      query: pageQuery,
      answers: { 200: { description: 'A page', json: pageOf(enrollmentCode) } },
    },
    async ({ principal, query }) => ({ json: pageJson(await codes.list({ ...pageRequest(query), asUserId: principal.userId }), codeJson) }),
  );

  const revokeCode = operation(
    {
      id: 'revokeEnrollmentCode', action: 'enrollment_code.revoke', method: 'post', path: '/api/enrollment-codes/{id}/revoke', tag: TAG, access: 'devices:write',
      summary: 'Make a code worthless',
      params: idParams,
      answers: { 204: { description: 'Done' } },
      problems: ['not_found'],
    },
    async ({ principal: { userId, actor }, params: { id } }) => {
      const isRevoked = await asUser(sql, userId, async (tx) => {
        if (!(await postgresEnrollmentCodes(tx, { rowMacKey, clock }).revoke(id, { byUserId: userId }))) return false;
        await audit.recordIn(tx, { action: 'enrollment_code.revoke', outcome: 'success', actor, resource: `enrollment_code:${id}` });
        return true;
      });
      if (!isRevoked) throw notFound();
      return {};
    },
  );

  const list = operation(
    {
      id: 'listDevices', action: 'device.list', method: 'get', path: '/api/devices', tag: TAG, access: 'devices:read',
      summary: 'List devices, newest first',
      query: devicePageQuery,
      answers: { 200: { description: 'A page', json: pageOf(device) } },
    },
    async ({ principal, query: { status, ...query } }) => {
      const page = await asUser(sql, principal.userId, async (tx) =>
        directoryIn(tx).list({ ...pageRequest(query), asUserId: principal.userId, reach: await seenBy(tx, principal), ...(status !== undefined && { status }) }),
      );
      return { json: pageJson(page, deviceJson) };
    },
  );

  const get = operation(
    {
      id: 'getDevice', action: 'device.read', method: 'get', path: '/api/devices/{id}', tag: TAG, access: 'devices:read',
      summary: 'Show one device',
      params: idParams,
      answers: { 200: { description: 'The device', json: device } },
      problems: ['not_found'],
    },
    async ({ principal, params: { id } }) => {
      const found = await asUser(sql, principal.userId, async (tx) => directoryIn(tx).get(id, { asUserId: principal.userId, reach: await seenBy(tx, principal) }));
      if (found === null) throw notFound();
      return { json: deviceJson(found), etag: deviceTag(found) };
    },
  );

  const update = operation(
    {
      id: 'updateDevice', action: 'device.update', method: 'patch', path: '/api/devices/{id}', tag: TAG, access: 'devices:write',
      summary: 'Name a device, or say how much, from where and with which models it may call',
      description: 'The limits bind its owner, so administrators set them; the owner may change the label. What is left out stays.',
      params: idParams,
      body: updateDeviceBody,
      answers: { 200: { description: 'The device as it is now', json: device } },
      problems: ['not_found', 'illegal_transition', 'precondition_failed'],
    },
    async ({ principal: { userId, actor }, params: { id: deviceId }, body, ifMatch }) => {
      const changed = await asUser(sql, userId, async (tx) => {
        // Whoever changes it at the same time waits, so that what is compared is what is changed.
        await tx.query('SELECT 1 FROM keyguard.devices WHERE device_id = $1 FOR UPDATE', [deviceId]);
        const inTransaction = postgresDeviceDirectory(tx, { rowMacKey, clock });
        const before = await inTransaction.get(deviceId, { asUserId: userId });
        if (before === null) throw notFound();
        demandMatch(ifMatch, deviceTag(before));
        if (before.status === 'revoked') throw new HttpProblem('illegal_transition', 'A device that is revoked stays as it is.');
        const settings: DeviceSettings = {
          ...(body.label !== undefined && { label: body.label }),
          ...(body.requests_per_minute !== undefined && { requestsPerMinute: body.requests_per_minute }),
          ...(body.ip_allowlist !== undefined && { ipAllowlist: body.ip_allowlist }),
          ...(body.allowed_models !== undefined && { allowedModels: body.allowed_models }),
        };
        const outcome = await inTransaction.configure(deviceId, settings, { byUserId: userId });
        if (outcome.outcome === 'not_found') throw notFound();
        if (outcome.outcome === 'forbidden') throw new HttpProblem('forbidden', 'Only an administrator sets the limits of a device.');
        const changes = Object.fromEntries(Object.entries(body).filter(([, value]) => value !== undefined)) as Record<string, JsonValue>;
        await audit.recordIn(tx, { action: 'device.update', outcome: 'success', actor, resource: `device:${deviceId}`, device_id: deviceId, ...changes });
        return outcome.device;
      });
      onChanged(deviceId);
      return { json: deviceJson(changed), etag: deviceTag(changed) };
    },
  );

  const moves = MOVES.map((move) =>
    operation(
      {
        id: `${move}Device`, action: `device.${move}`, method: 'post', path: `/api/devices/{id}/${move}`, tag: TAG, access: 'devices:write',
        ...(move === 'approve' && { stepUp: 'approve' as const }),
        summary: SUMMARIES[move],
        params: idParams,
        answers: { 200: { description: 'The device as it is now', json: device } },
        problems: ['not_found', 'illegal_transition', 'owner_required'],
      },
      async ({ principal, params: { id: deviceId } }) => {
        const { userId, actor } = principal;
        const entry: AuditEntry = { action: `device.${move}`, outcome: 'success', actor, resource: `device:${deviceId}`, device_id: deviceId };
        const result = await asUser(sql, userId, async (tx): Promise<DeviceMoveOutcome> => {
          const [sees, shuts] = [await seenBy(tx, principal), await access.reachOf(tx, principal, 'devices:write')];
          const outcome = await directoryIn(tx).transition(deviceId, move, { byUserId: userId, sees, shuts });
          if (outcome.outcome === 'changed') {
            if (outcome.device.status === 'active') await demandOpenOwner(tx, deviceId);
            await audit.recordIn(tx, { ...entry, from: outcome.from, to: outcome.device.status });
          }
          return outcome;
        });
        if (result.outcome !== 'changed') throw refusalOf(result, move);
        onChanged(deviceId);
        if (move === 'suspend' || move === 'revoke') onShut(deviceId);
        return { json: deviceJson(result.device) };
      },
    ),
  );

  const createRotationCode = operation(
    {
      id: 'createRotationCode', action: 'rotation_code.create', method: 'post', path: '/api/devices/{id}/rotation-codes', tag: TAG, access: 'devices:write',
      summary: 'Make a code with which a device replaces its key',
      idempotent: { member: 'code', isGood: ({ userId }, json) => isOpen(userId, 'rotation_codes', 'used_at_ms IS NULL AND revoked_at_ms IS NULL', json) },
      params: idParams,
      body: createRotationCodeBody,
      answers: { 201: { description: 'The code, shown this once', json: withCode(rotationCode) } },
      problems: ['not_found', 'illegal_transition'],
    },
    async ({ principal: { userId, actor }, params: { id: deviceId }, body }) => {
      const code = generateRotationCode(webCryptoRandom());
      const result = await asUser(sql, userId, async (tx): Promise<RotationCodeOutcome> => {
        const outcome = await postgresRotationCodes(tx, { rowMacKey, clock }).create({
          codeHash: hashRotationCode(code)!,
          deviceId,
          createdBy: userId,
          expiresAtMs: clock.nowMs() + body.expires_in_s * 1000,
        });
        if (outcome.outcome === 'created') {
          await audit.recordIn(tx, {
            action: 'rotation_code.create',
            outcome: 'success',
            actor,
            resource: `rotation_code:${outcome.code.id}`,
            device_id: deviceId,
          });
        }
        return outcome;
      });
      if (result.outcome === 'not_found') throw notFound();
      if (result.outcome === 'illegal') throw new HttpProblem('illegal_transition', `A device that is ${result.status} cannot replace its key.`);
      return { status: 201, json: { ...rotationCodeJson(result.code), code } };
    },
  );

  return [createCode, listCodes, revokeCode, list, get, update, ...moves, createRotationCode];
}

/** A device of somebody who may not come in does not come in either. */
async function demandOpenOwner(tx: SqlTransaction, deviceId: string): Promise<void> {
  const { rows } = await tx.query(
    'SELECT 1 FROM keyguard.devices d JOIN keyguard.disabled_people p ON p.user_id = d.owner_id WHERE d.device_id = $1',
    [deviceId],
  );
  if (rows.length > 0) throw new HttpProblem('illegal_transition', 'The owner of this device is disabled: enable that person first.');
}

const SUMMARIES: Readonly<Record<DeviceMove, string>> = {
  approve: 'Let a device in that waits',
  suspend: 'Shut a device out for now',
  resume: 'Let a suspended device in again',
  revoke: 'Shut a device out for ever',
};

function refusalOf(result: Exclude<DeviceMoveOutcome, { outcome: 'changed' }>, move: DeviceMove): HttpProblem {
  switch (result.outcome) {
    case 'not_found':
      return notFound();
    case 'forbidden':
      return new HttpProblem('forbidden', `You may see this device, but not ${move} it.`);
    case 'illegal':
      return new HttpProblem('illegal_transition', `A device that is ${result.status} cannot be ${PAST[move]}.`);
    case 'owner_required':
      return new HttpProblem('owner_required', 'This device enrolled without a code and has no owner yet.');
  }
}

const PAST: Readonly<Record<DeviceMove, string>> = { approve: 'approved', suspend: 'suspended', resume: 'resumed', revoke: 'revoked' };
