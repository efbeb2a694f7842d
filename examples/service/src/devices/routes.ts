/**
 * Devices, and the codes with which they enroll and replace their keys, as people administer them. What a caller sees is decided by the policies; every
 * change and its audit entry are one transaction.
 */
import { Router, type Request, type Response } from 'express';
import type { AuditEntry, Clock } from '@keyguard/core/seams';
import { systemClock, webCryptoRandom } from '@keyguard/core/system';
import { generateEnrollmentCode, hashEnrollmentCode } from '@keyguard/server-verifier/enrollment-code';
import { generateRotationCode, hashRotationCode } from '@keyguard/server-verifier/rotation-code';
import {
  postgresDeviceDirectory,
  postgresEnrollmentCodes,
  postgresRotationCodes,
  type DeviceMove,
  type DeviceMoveOutcome,
  type RotationCodeOutcome,
  type SqlClient,
} from '@keyguard/storage-node/postgres';
import { DEFAULT_PROJECT_ID } from '../api-keys/store.ts';
import type { AuditLog } from '../audit/log.ts';
import { principalOf } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { noBody, type JsonReader } from '../http/json-body.ts';
import { pageJson, pageQuery, pageRequest } from '../http/pagination.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import { codeJson, createCodeBody, createRotationCodeBody, deviceJson, devicePageQuery, id, rotationCodeJson } from './schema.ts';

export interface DeviceRoutesOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly readJson: JsonReader;
  /** Told of every device that was changed, once that is durable and before it is acknowledged. */
  readonly onChanged: (deviceId: string) => void;
  /** Told, after that, of every device that may not call any more. */
  readonly onShut: (deviceId: string) => void;
  readonly clock?: Clock;
}

const MOVES: readonly DeviceMove[] = ['approve', 'suspend', 'resume', 'revoke'];

/** `/api/enrollment-codes` and `/api/devices`. */
export function deviceRoutes({ sql, keys, audit, readJson, onChanged, onShut, clock = systemClock }: DeviceRoutesOptions): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const { rowMacKey } = keys;
  const directory = postgresDeviceDirectory(sql, { rowMacKey, clock });
  const codes = postgresEnrollmentCodes(sql, { rowMacKey, clock });

  router.post('/api/enrollment-codes', async (request, response) => {
    const { userId, isAdministrator } = principalOf(request);
    const body = createCodeBody.parse(await readJson(request));
    // A device that nobody has to approve is approved by whoever makes its code, and only administrators approve.
    if (!isAdministrator && body.auto_approve === true) throw new HttpProblem('forbidden', 'Only an administrator makes codes for devices that need no approval.');
    const code = generateEnrollmentCode(webCryptoRandom());
    const created = await asUser(sql, userId, async (tx) => {
      const made = await postgresEnrollmentCodes(tx, { rowMacKey, clock }).create({
        codeHash: hashEnrollmentCode(code)!,
        createdBy: userId,
        forUserId: userId,
        projectId: DEFAULT_PROJECT_ID,
        label: body.label ?? null,
        maxUses: body.max_uses,
        autoApprove: body.auto_approve ?? isAdministrator,
        expiresAtMs: clock.nowMs() + body.expires_in_s * 1000,
      });
      await audit.recordIn(tx, {
        action: 'enrollment_code.create',
        outcome: 'success',
        actor: `user:${userId}`,
        resource: `enrollment_code:${made.id}`,
        auto_approve: made.autoApprove,
        max_uses: made.maxUses,
      });
      return made;
    });
    response.status(201).set('cache-control', 'no-store').json({ ...codeJson(created), code });
  });

  router.get('/api/enrollment-codes', async (request, response) => {
    const page = await codes.list({ ...pageRequest(pageQuery.parse(request.query)), asUserId: principalOf(request).userId });
    sendJson(response, pageJson(page, codeJson));
  });

  router.post('/api/enrollment-codes/:id/revoke', noBody, async (request, response) => {
    const { userId } = principalOf(request);
    const codeId = idOf(request);
    const isRevoked = await asUser(sql, userId, async (tx) => {
      if (!(await postgresEnrollmentCodes(tx, { rowMacKey, clock }).revoke(codeId, { byUserId: userId }))) return false;
      await audit.recordIn(tx, {
        action: 'enrollment_code.revoke',
        outcome: 'success',
        actor: `user:${userId}`,
        resource: `enrollment_code:${codeId}`,
      });
      return true;
    });
    if (!isRevoked) throw notFound();
    response.status(204).end();
  });

  router.get('/api/devices', async (request, response) => {
    const { status, ...query } = devicePageQuery.parse(request.query);
    const page = await directory.list({
      ...pageRequest(query),
      asUserId: principalOf(request).userId,
      ...(status !== undefined && { status }),
    });
    sendJson(response, pageJson(page, deviceJson));
  });

  router.get('/api/devices/:id', async (request, response) => {
    const device = await directory.get(idOf(request), { asUserId: principalOf(request).userId });
    if (device === null) throw notFound();
    sendJson(response, deviceJson(device));
  });

  for (const move of MOVES) {
    router.post(`/api/devices/:id/${move}`, noBody, async (request, response) => {
      const { userId } = principalOf(request);
      const deviceId = idOf(request);
      const entry: AuditEntry = {
        action: `device.${move}`,
        outcome: 'success',
        actor: `user:${userId}`,
        resource: `device:${deviceId}`,
        device_id: deviceId,
      };
      const result = await asUser(sql, userId, async (tx): Promise<DeviceMoveOutcome> => {
        const outcome = await postgresDeviceDirectory(tx, { rowMacKey, clock }).transition(deviceId, move, { byUserId: userId });
        if (outcome.outcome === 'changed') await audit.recordIn(tx, { ...entry, from: outcome.from, to: outcome.device.status });
        return outcome;
      });
      if (result.outcome === 'forbidden') await audit.record({ ...entry, outcome: 'refused' });
      if (result.outcome !== 'changed') throw refusalOf(result, move);
      onChanged(deviceId);
      if (move === 'suspend' || move === 'revoke') onShut(deviceId);
      sendJson(response, deviceJson(result.device));
    });
  }

  router.post('/api/devices/:id/rotation-codes', async (request, response) => {
    const { userId } = principalOf(request);
    const deviceId = idOf(request);
    const body = createRotationCodeBody.parse(await readJson(request));
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
          actor: `user:${userId}`,
          resource: `rotation_code:${outcome.code.id}`,
          device_id: deviceId,
        });
      }
      return outcome;
    });
    if (result.outcome === 'not_found') throw notFound();
    if (result.outcome === 'illegal') throw new HttpProblem('illegal_transition', `A device that is ${result.status} cannot replace its key.`);
    response.status(201).set('cache-control', 'no-store').json({ ...rotationCodeJson(result.code), code });
  });

  return router;
}

function idOf(request: Request): string {
  const parsed = id.safeParse(request.params['id']);
  if (!parsed.success) throw notFound();
  return parsed.data;
}

function sendJson(response: Response, value: object): void {
  response.set('cache-control', 'no-store').json(value);
}

function refusalOf(result: Exclude<DeviceMoveOutcome, { outcome: 'changed' }>, move: DeviceMove): HttpProblem {
  switch (result.outcome) {
    case 'not_found':
      return notFound();
    case 'forbidden':
      return new HttpProblem('forbidden', `Only an administrator may ${move} this device.`);
    case 'illegal':
      return new HttpProblem('illegal_transition', `A device that is ${result.status} cannot be ${PAST[move]}.`);
    case 'owner_required':
      return new HttpProblem('owner_required', 'This device enrolled without a code and has no owner yet.');
  }
}

const PAST: Readonly<Record<DeviceMove, string>> = { approve: 'approved', suspend: 'suspended', resume: 'resumed', revoke: 'revoked' };
