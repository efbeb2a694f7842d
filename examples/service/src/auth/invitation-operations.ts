/** `/api/invitations` and password resets: what administrators make, and what whoever holds a token does with it. */
import * as z from 'zod';
import type { Clock, RateLimiter } from '@keyguard/core/seams';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageQuery, pageRequest, time, timeJson } from '../http/pagination.ts';
import { HttpProblem, notFound } from '../http/problems.ts';
import type { Invitation, Invitations } from './invitations.ts';
import { limitTries } from './one-time-links.ts';
import type { PasswordResets } from './password-resets.ts';
import { personOf } from './principal.ts';
import { email, newPassword, userParams } from './schema.ts';

const TAG = 'People';
const DAY_SECONDS = 24 * 60 * 60;

const createBody = z.strictObject({
  email,
  role_ids: z.array(z.uuid()).max(20).default([]).describe('Roles that the person gets, everywhere.'),
  is_administrator: z.boolean().default(false),
  expires_in_s: z.int().min(60).max(30 * DAY_SECONDS).default(3 * DAY_SECONDS),
});

const resetBody = z.strictObject({ expires_in_s: z.int().min(60).max(DAY_SECONDS).default(3600) });

const token = z.string().min(1).max(100);
const acceptBody = z.strictObject({
  token,
  second_token: token.optional().describe('Of the administrator who approved it; needed where it gives power and two administer.'),
  password: newPassword,
  name: z.string().trim().min(1).max(100),
});
const acceptResetBody = z.strictObject({
  token,
  second_token: token.optional().describe('Of another administrator; needed where two administer.'),
  password: newPassword,
});

const invitation = z
  .object({
    id: z.uuid(),
    email: z.string(),
    role_ids: z.array(z.string()),
    is_administrator: z.boolean(),
    invited_by: z.string(),
    created_at: time,
    expires_at: time,
    accepted_at: time.nullable(),
    accepted_user_id: z.string().nullable(),
    revoked_at: time.nullable(),
    approved_by: z.string().nullable().describe('The second administrator, who stands for it as well.'),
    approved_at: time.nullable(),
  })
  .meta({ id: 'Invitation' });

const shownOnce = z.string().describe('To be handed over by a safe way, and shown this once.');

export interface InvitationOperationsOptions {
  readonly invitations: Invitations;
  readonly passwordResets: PasswordResets;
  /** Tries of tokens, by address. */
  readonly linkLimiter: RateLimiter;
  readonly clock: Clock;
}

export function invitationOperations({ invitations, passwordResets, linkLimiter, clock }: InvitationOperationsOptions): readonly Operation[] {
  return [
    operation(
      {
        id: 'createInvitation', action: 'invitation.create', method: 'post', path: '/api/invitations', tag: TAG, access: 'administrator',
        stepUp: 'approve', idempotent: { member: 'token', isGood: (_principal, { token: shown }) => invitations.isOpen(shown as string) },
        summary: 'Invite somebody; hand over the token yourself',
        description:
          'No mail is sent. The token counts while you administer. Where two administer, one that makes an administrator or lets somebody reveal or share secrets counts once another one has approved it, beside the second token of the approval.',
        body: createBody,
        answers: { 201: { description: 'The invitation, with its token', json: invitation.extend({ token: shownOnce }).meta({ id: 'NewInvitation' }) } },
        problems: ['account_exists', 'quota_exceeded'],
      },
      async ({ principal, body }) => {
        const made = await invitations.create(
          { email: body.email, roleIds: body.role_ids, isAdministrator: body.is_administrator, expiresInSeconds: body.expires_in_s },
          personOf(principal),
        );
        return { status: 201, json: { ...invitationJson(made.invitation), token: made.token } };
      },
    ),

    operation(
      {
        id: 'listInvitations', action: 'invitation.list', method: 'get', path: '/api/invitations', tag: TAG, access: 'administrator',
        summary: 'List invitations, newest first, without their tokens',
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(invitation) } },
      },
      async ({ query }) => ({ json: pageJson(await invitations.list(pageRequest(query)), invitationJson) }),
    ),

    operation(
      {
        id: 'approveInvitation', action: 'invitation.approve', method: 'post', path: '/api/invitations/{id}/approve', tag: TAG, access: 'administrator',
        stepUp: 'approve', idempotent: { member: 'second_token', isGood: (_principal, { id, second_token: shown }) => invitations.isSecondOpen(id as string, shown as string) },
        summary: 'Stand for an invitation of another administrator, as the second one; hand over the second token yourself',
        description:
          'Give it to the person themself, and not by who made the invitation, who could come in with both. Approving again makes a new second token, and the one of before worth nothing.',
        params: idParams,
        answers: { 200: { description: 'Approved, with the second token', json: invitation.extend({ second_token: shownOnce }).meta({ id: 'ApprovedInvitation' }) } },
        problems: ['not_found', 'four_eyes_required'],
      },
      async ({ principal, params }) => {
        const approved = await invitations.approve(params.id, personOf(principal));
        if (approved === null) throw notFound();
        return { json: { ...invitationJson(approved.invitation), second_token: approved.secondToken } };
      },
    ),

    operation(
      {
        id: 'revokeInvitation', action: 'invitation.revoke', method: 'post', path: '/api/invitations/{id}/revoke', tag: TAG, access: 'administrator',
        summary: 'Make an invitation worthless',
        params: idParams,
        answers: { 200: { description: 'Revoked', json: invitation } },
        problems: ['not_found'],
      },
      async ({ principal, params }) => {
        const revoked = await invitations.revoke(params.id, personOf(principal));
        if (revoked === null) throw notFound();
        return { json: invitationJson(revoked) };
      },
    ),

    operation(
      {
        id: 'acceptInvitation', action: 'invitation.accept', method: 'post', path: '/api/invitations/accept', tag: TAG, access: 'public',
        summary: 'Come in with the token of an invitation, and set a password',
        description:
          'Where two administer, an invitation that makes an administrator or lets somebody reveal or share secrets takes the second token of its approval as well: whoever made it does not come in by it alone.',
        body: acceptBody,
        answers: { 201: { description: 'The person, who can sign in now', json: z.object({ user_id: z.string(), email: z.string() }) } },
        problems: ['link_invalid', 'account_exists', 'four_eyes_required'],
      },
      async ({ body, request }) => {
        await limitTries(linkLimiter, request.ip, clock.nowMs());
        const { userId, email: address } = await invitations.accept(body.token, body.second_token ?? null, body);
        return { status: 201, json: { user_id: userId, email: address } };
      },
    ),

    operation(
      {
        id: 'createPasswordReset', action: 'password_reset.create', method: 'post', path: '/api/users/{id}/password-reset', tag: TAG, access: 'administrator',
        stepUp: 'approve', idempotent: { member: 'token', isGood: (_principal, { token: shown }) => passwordResets.isOpen(shown as string) },
        summary: 'Make a token with which a person sets a new password; hand it over yourself',
        params: userParams,
        body: resetBody,
        answers: { 201: { description: 'The token', json: z.object({ token: shownOnce, expires_at: time }) } },
        problems: ['not_found'],
      },
      async ({ principal, params, body }) => {
        const person = personOf(principal);
        if (params.id === person.userId) throw new HttpProblem('forbidden', 'Your own password is changed with the old one, or by another administrator.');
        const made = await passwordResets.create(params.id, body.expires_in_s, person);
        if (made === null) throw notFound();
        return { status: 201, json: { token: made.token, expires_at: timeJson(made.expiresAtMs) } };
      },
    ),

    operation(
      {
        id: 'acceptPasswordReset', action: 'password_reset.accept', method: 'post', path: '/api/password-resets/accept', tag: TAG, access: 'public',
        summary: 'Set a new password with a token, and end all sessions',
        description: 'Where two administer it takes a token of each of two: no administrator becomes somebody else alone, nor one of two the other.',
        body: acceptResetBody,
        answers: { 204: { description: 'The new password counts' } },
        problems: ['link_invalid', 'four_eyes_required'],
      },
      async ({ body, request }) => {
        await limitTries(linkLimiter, request.ip, clock.nowMs());
        await passwordResets.accept(body.token, body.second_token ?? null, body.password);
        return {};
      },
    ),
  ];
}

function invitationJson(one: Invitation): z.infer<typeof invitation> {
  return {
    id: one.id,
    email: one.email,
    role_ids: [...one.roleIds],
    is_administrator: one.isAdministrator,
    invited_by: one.invitedBy,
    created_at: timeJson(one.createdAtMs),
    expires_at: timeJson(one.expiresAtMs),
    accepted_at: timeJson(one.acceptedAtMs),
    accepted_user_id: one.acceptedUserId,
    revoked_at: timeJson(one.revokedAtMs),
    approved_by: one.approvedBy,
    approved_at: timeJson(one.approvedAtMs),
  };
}
