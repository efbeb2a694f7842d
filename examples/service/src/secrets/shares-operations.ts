/** `/api/secrets/{id}/shares`, `/api/secrets/{id}/links` and `/api/shares`: giving secrets on, and opening one-time links. */
import type { RateLimiter } from '@keyguard/core/seams';
import { ipBucket } from '@keyguard/server-verifier/ip';
import * as z from 'zod';
import { tooManyRequests } from '../auth/door.ts';
import { operation, type Operation } from '../http/operations.ts';
import { idParams, pageJson, pageOf, pageQuery, pageRequest, timeJson } from '../http/pagination.ts';
import { HttpProblem } from '../http/problems.ts';
import { linkUrl } from './shares-link-token.ts';
import type { Links } from './shares-links.ts';
import { createdLink, createLinkBody, createShareBody, openedLink, openLinkBody, share, sharedWithMe } from './shares-schema.ts';
import type { Share, SharedSecret, Shares } from './shares-store.ts';

const TAG = 'Sharing';

export interface ShareOperationsOptions {
  readonly shares: Shares;
  readonly links: Links;
  /** Where people reach the service. */
  readonly origin: string;
  /** Of tries to open links, by address. */
  readonly openLimiter: RateLimiter;
  /** Addresses of people that one caller may name. */
  readonly addressLimiter: RateLimiter;
}

const shareParams = z.strictObject({ id: z.uuid(), share_id: z.uuid() });
// Anything: what is no token is answered as what is one that opens nothing.
const tokenParams = z.strictObject({ token: z.string().max(512) });

const nothingToOpen = (): HttpProblem =>
  new HttpProblem('not_found', 'There is nothing to open: the link is not complete, was used, has expired or was taken back, or the passphrase is not right.');

export function shareOperations({ shares, links, origin, openLimiter, addressLimiter }: ShareOperationsOptions): readonly Operation[] {
  return [
    operation(
      {
        id: 'shareSecret', action: 'secret.share', method: 'post', path: '/api/secrets/{id}/shares', tag: TAG, access: 'secrets:share',
        summary: 'Share a secret with a person, a role or a service account',
        description: 'Takes the place of what the same grantee was given before by the caller, and of whatever they were given where the caller owns the secret.',
        idempotent: true,
        stepUp: 'share',
        params: idParams,
        body: createShareBody,
        answers: { 201: { description: 'Shared', json: share } },
        problems: ['not_found', 'grantee_not_found', 'quota_exceeded'],
      },
      async ({ principal, params: { id }, body: { grantee, permission, expires_at: expiresAt } }) => {
        // The answer says whether there is such an account: so nobody goes through a list of addresses. Those that are there count too,
        // or a refusal for too many would say what it hides.
        if (grantee.email !== undefined) {
          const tries = await addressLimiter.consume(principal.userId, 1);
          if (!tries.allowed) throw tooManyRequests((tries.resetAtMs - Date.now()) / 1000);
        }
        return { status: 201, json: shareJson(await shares.give(principal, id, { grantee, permission, expiresAtMs: expiresAt === undefined ? null : Date.parse(expiresAt) })) };
      },
    ),
    operation(
      {
        id: 'listShares', action: 'secret.list_shares', method: 'get', path: '/api/secrets/{id}/shares', tag: TAG, access: 'secrets:share',
        summary: 'List the shares and links of a secret, newest first',
        description: 'To its owner all of them, to others who may share it those that they made themselves.',
        params: idParams,
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(share) } },
        problems: ['not_found'],
      },
      async ({ principal, params: { id }, query }) => ({ json: pageJson(await shares.list(principal, id, pageRequest(query)), shareJson) }),
    ),
    operation(
      {
        id: 'revokeShare', action: 'secret.unshare', method: 'delete', path: '/api/secrets/{id}/shares/{share_id}', tag: TAG, access: 'secrets:share',
        summary: 'Take a share or a link back, for ever',
        description: 'For the owner of the secret, for whoever made the share, and for whom it was given to. It ends at once.',
        params: shareParams,
        answers: { 204: { description: 'Taken back, now or before' } },
        problems: ['not_found'],
      },
      async ({ principal, params: { id, share_id: shareId } }) => {
        await shares.revoke(principal, id, shareId);
        return {};
      },
    ),
    operation(
      {
        id: 'listSharedWithMe', action: 'share.list', method: 'get', path: '/api/shares', tag: TAG, access: 'secrets:read',
        summary: 'List what others have shared with the caller and what still counts of it, newest first',
        query: pageQuery,
        answers: { 200: { description: 'A page', json: pageOf(sharedWithMe) } },
      },
      async ({ principal, query }) => ({ json: pageJson(await shares.withMe(principal, pageRequest(query)), sharedJson) }),
    ),
    operation(
      {
        id: 'createSecretLink', action: 'secret.create_link', method: 'post', path: '/api/secrets/{id}/links', tag: TAG, access: 'secrets:share',
        summary: 'Make a link with which somebody without an account reads a secret',
        description: 'It opens the version that counts now, also when there is a newer one later. How long and how often it may be opened is limited by the settings.',
        idempotent: { member: 'token', isGood: (principal, { id }) => links.isOpen(principal, id as string) },
        stepUp: 'share',
        params: idParams,
        body: createLinkBody,
        answers: { 201: { description: 'The link, shown this once', json: createdLink } },
        problems: ['not_found', 'quota_exceeded'],
      },
      async ({ principal, params: { id }, body: { max_views: maxViews, expires_in_s: expiresInSeconds, passphrase = null } }) => {
        const { share: made, token } = await links.create(principal, id, { maxViews, expiresInSeconds, passphrase });
        return { status: 201, json: { ...shareJson(made), url: linkUrl(origin, token), token } };
      },
    ),
    operation(
      {
        id: 'openSecretLink', action: 'secret.open_link', method: 'post', path: '/api/shares/{token}/open', tag: TAG, access: 'public',
        summary: 'Open a link, which uses up one of its views',
        description: 'Whatever cannot be opened is answered alike. A few wrong passphrases end a link for ever.',
        params: tokenParams,
        body: openLinkBody,
        answers: { 200: { description: 'The value', json: openedLink } },
        problems: ['not_found'],
      },
      async ({ params: { token }, body: { passphrase = null }, request }) => {
        const tries = await openLimiter.consume(ipBucket(request.ip ?? null), 1);
        if (!tries.allowed) throw tooManyRequests((tries.resetAtMs - Date.now()) / 1000);
        const opened = await links.open(token, passphrase);
        if (opened === null) throw nothingToOpen();
        return { json: { value: opened.value, views_left: opened.viewsLeft, expires_at: timeJson(opened.expiresAtMs) } };
      },
    ),
  ];
}

function shareJson(one: Share): z.infer<typeof share> {
  return {
    id: one.id,
    secret_id: one.secretId,
    grantee: one.grantee,
    permission: one.permission,
    created_by: one.createdBy,
    created_at: timeJson(one.createdAtMs),
    expires_at: timeJson(one.expiresAtMs),
    revoked_at: timeJson(one.revokedAtMs),
    max_views: one.maxViews,
    views: one.views,
    version: one.version,
    intact: one.intact,
  };
}

function sharedJson({ share: one, secret, ownerLabel }: SharedSecret): z.infer<typeof sharedWithMe> {
  return {
    id: one.id,
    secret: { id: secret.id, name: secret.name, type: secret.type },
    grantee: one.grantee,
    permission: one.permission,
    owner: { id: secret.ownerId, label: ownerLabel },
    created_at: timeJson(one.createdAtMs),
    expires_at: timeJson(one.expiresAtMs),
  };
}
