/** `/api/auth/second-factor` and `/api/auth/step-up`: a person's own second factor; and the help of an administrator for who lost it. */
import type { Request } from 'express';
import * as z from 'zod';
import { operation, type Operation } from '../http/operations.ts';
import { time, timeJson } from '../http/pagination.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { Credentials } from './credentials.ts';
import { passedOn, type AuthDoor } from './door.ts';
import { personOf } from './principal.ts';
import type { SecondFactors } from './second-factor.ts';
import { userParams } from './schema.ts';

const TAG = 'Second factor';

const code = z.string().min(6).max(20).describe('Six digits of the authenticator, or a backup code. Each is accepted once.');
const password = z.string().max(1024).optional().describe('The password of who has one.');
const backupCodes = z.object({ backup_codes: z.array(z.string()).describe('Each lets you in once without the authenticator. Shown this once.') });

const newToken = z.object({ 'set-auth-token': z.string().describe('The token of the session from now on. The one before, and its JWTs, are worth nothing.') });

const state = z
  .object({
    is_set_up: z.boolean(),
    is_pending: z.boolean().describe('Whether one was begun, and no code of it has come yet.'),
    activated_at: time.nullable(),
    backup_codes_left: z.int(),
    proven_at: time.nullable().describe('When it was last proven in this session.'),
  })
  .meta({ id: 'SecondFactor' });

export interface SecondFactorOperationsOptions {
  readonly factors: SecondFactors;
  readonly credentials: Credentials;
  readonly door: AuthDoor;
}

export function secondFactorOperations({ factors, credentials, door }: SecondFactorOperationsOptions): readonly Operation[] {
  /** What is answered with a new token of the session is for who holds one of it: a JWT cannot prolong itself. */
  async function demandSession(request: Request): Promise<void> {
    if ((await door.session(request)) === null) throw new HttpProblem('not_authenticated', 'Ask with the token or the cookie of the session itself, not with a JWT.');
  }

  return [
    operation(
      {
        id: 'getSecondFactor', action: 'second_factor.read', method: 'get', path: '/api/auth/second-factor', tag: TAG, access: 'person',
        beforeSecondFactor: true,
        summary: 'Whether you have a second factor, and when this session last proved it',
        answers: { 200: { description: 'The state', json: state } },
      },
      async ({ principal }) => {
        const person = personOf(principal);
        const { isSetUp, isPending, activatedAtMs, backupCodesLeft } = await factors.stateOf(person.userId);
        const provenAtMs = person.secondFactor.provenAtMs;
        return {
          json: { is_set_up: isSetUp, is_pending: isPending, activated_at: timeJson(activatedAtMs), backup_codes_left: backupCodesLeft, proven_at: timeJson(provenAtMs) },
        };
      },
    ),

    operation(
      {
        id: 'beginSecondFactor', action: 'second_factor.begin', method: 'post', path: '/api/auth/second-factor', tag: TAG, access: 'person',
        beforeSecondFactor: true,
        summary: 'Get a secret for an authenticator; it counts once a code of it has come back',
        body: z.strictObject({ password }),
        answers: {
          201: {
            description: 'The secret, shown this once',
            json: z.object({ secret: z.string().describe('Base32, to be typed.'), uri: z.string().describe('otpauth, to be shown as a QR code.') }),
          },
        },
        problems: ['invalid_password', 'second_factor_exists'],
      },
      async ({ principal, body }) => {
        const person = personOf(principal);
        if (person.secondFactor.isSetUp) throw new HttpProblem('second_factor_exists', 'There is a second factor already: disable it first.');
        await credentials.demand(person, body.password);
        return { status: 201, json: await factors.begin(person) };
      },
    ),

    operation(
      {
        id: 'activateSecondFactor', action: 'second_factor.activate', method: 'post', path: '/api/auth/second-factor/activate', tag: TAG, access: 'person',
        beforeSecondFactor: true,
        setsCookies: true,
        summary: 'Show that the authenticator works, and make it count; all your sessions end, and a new one takes the place of this one',
        description: 'Asked for with the token or the cookie of the session itself: whoever holds no more than a JWT gets no session by it.',
        body: z.strictObject({ code }),
        answers: { 200: { description: 'It counts from now on', json: backupCodes, headers: newToken } },
        problems: ['second_factor_invalid', 'second_factor_missing', 'second_factor_exists'],
      },
      async ({ principal, body, request, response }) => {
        const person = personOf(principal);
        await demandSession(request);
        const { backupCodes: codes, sessionId } = await factors.activate(person, body.code);
        return passedOn(response, await door.handOut({ userId: person.userId, sessionId }), () => ({ backup_codes: codes }));
      },
    ),

    operation(
      {
        id: 'stepUp', action: 'second_factor.prove', method: 'post', path: '/api/auth/step-up', tag: TAG, access: 'person',
        beforeSecondFactor: true,
        setsCookies: true,
        summary: 'Prove your second factor: completes a sign-in, and opens what demands a fresh proof',
        body: z.strictObject({ code }),
        answers: {
          200: {
            description: 'Proven',
            json: z.object({ proven_at: time }),
            headers: z.object({
              'set-auth-token': z.string().describe('Only where this completed a sign-in: the token of the session from now on. The one before is worth nothing.').optional(),
            }),
          },
        },
        problems: ['second_factor_invalid', 'second_factor_missing'],
      },
      async ({ principal, body, response }) => {
        const person = personOf(principal);
        const { provenAtMs, newToken } = await factors.prove(person, body.code);
        const json = { proven_at: timeJson(provenAtMs) };
        if (newToken === null) return { json };
        return passedOn(response, await door.handOut(person), () => json);
      },
    ),

    operation(
      {
        id: 'renewBackupCodes', action: 'second_factor.renew_backup_codes', method: 'post', path: '/api/auth/second-factor/backup-codes', tag: TAG, access: 'person',
        summary: 'Get new backup codes; the old ones are worth nothing',
        body: z.strictObject({ code }),
        answers: { 200: { description: 'The new ones', json: backupCodes } },
        problems: ['second_factor_invalid', 'second_factor_missing'],
      },
      async ({ principal, body }) => ({ json: { backup_codes: await factors.renewBackupCodes(personOf(principal), body.code) } }),
    ),

    operation(
      {
        id: 'disableSecondFactor', action: 'second_factor.disable', method: 'post', path: '/api/auth/second-factor/disable', tag: TAG, access: 'person',
        setsCookies: true,
        summary: 'Remove your second factor, with password and code; all your sessions end, and a new one takes the place of this one',
        description: 'Asked for with the token or the cookie of the session itself.',
        body: z.strictObject({ password, code }),
        answers: { 204: { description: 'Removed', headers: newToken } },
        problems: ['invalid_password', 'second_factor_invalid', 'second_factor_missing'],
      },
      async ({ principal, body, request, response }) => {
        const person = personOf(principal);
        await demandSession(request);
        await credentials.demand(person, body.password);
        const { sessionId } = await factors.disable(person, body.code);
        const { headers = {} } = passedOn(response, await door.handOut({ userId: person.userId, sessionId }), () => ({}));
        return { status: 204, headers };
      },
    ),

    operation(
      {
        id: 'removeSecondFactor', action: 'second_factor.remove', method: 'delete', path: '/api/users/{id}/second-factor', tag: TAG, access: 'administrator',
        stepUp: 'approve',
        summary: 'Remove the second factor of somebody who lost it, and end their sessions',
        params: userParams,
        answers: { 204: { description: 'Removed' } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => {
        const person = personOf(principal);
        if (params.id === person.userId) throw new HttpProblem('forbidden', 'Your own second factor is disabled with its code, or by another administrator.');
        if (!(await factors.remove(params.id, person))) throw notFound();
        return {};
      },
    ),
  ];
}
