/**
 * One-time links: whoever has one reads one version of one secret, as often as it says and not once more. What is handed out is
 * claimed and written to the audit log in one transaction before it is released, so of any number who ask at once as many win as the
 * link has views.
 *
 * Whatever a link cannot be opened for (it never was, it was used, it has expired, it was revoked, its maker may not share any more,
 * the passphrase is wrong), who asks is told the same. The audit log knows which.
 */
import { randomUUID } from 'node:crypto';
import type { Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { isIntact, rowMac, type RowField, type SqlClient } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import * as passwords from '../auth/passwords.ts';
import type { Principal } from '../auth/principal.ts';
import { asUser, asVerifier } from '../db/as-user.ts';
import { HttpProblem } from '../http/problems.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { Access } from '../roles/access.ts';
import { scopesOf } from '../service-accounts/standing.ts';
import { NO_QUOTAS, type Quotas } from '../settings/quotas.ts';
import { shareFields, shareGrant, type ShareGrant } from './shares.ts';
import { grantees } from './shares-grantees.ts';
import { generateLinkToken, hashLinkToken } from './shares-link-token.ts';
import { MAX_VIEWS, SHARED_PERMISSIONS } from './shares-schema.ts';
import { absent, isDisabled, stillStands } from './shares-standing.ts';
import type { SecretStore } from './store.ts';
import { demandMayGive, showShares, STORED_SHARE_COLUMNS, type Share, type StoredShareRow } from './shares-store.ts';

/** How many wrong passphrases end a link for ever. */
export const MAX_TRIES = 5;
const LINK_MAC = 'secret_shares.link';
const GRANTED = SHARED_PERMISSIONS.read;

export interface NewLink {
  readonly maxViews: number;
  readonly expiresInSeconds: number;
  /** Secret. */
  readonly passphrase: string | null;
}

export interface OpenedLink {
  /** Secret. */
  readonly value: string;
  readonly viewsLeft: number;
  readonly expiresAtMs: number;
}

export interface Links {
  /** Makes a link to the version that counts now; its token is in the answer, and nowhere else from then on. @throws HttpProblem */
  create(principal: Principal, secretId: string, link: NewLink): Promise<{ readonly share: Share; readonly token: string }>;
  /** Whether a link of the caller's can be opened at least once more. */
  isOpen(principal: Principal, shareId: string): Promise<boolean>;
  /** Uses up one view of what `token` (untrusted) opens. `null` for everything that opens nothing. */
  open(token: string, passphrase: string | null): Promise<OpenedLink | null>;
}

export interface LinksOptions {
  readonly sql: SqlClient;
  readonly keys: Pick<DeploymentKeys, 'rowMacKey' | 'hashToken'>;
  readonly audit: AuditLog;
  readonly access: Access;
  readonly secrets: Pick<SecretStore, 'rows' | 'parts'>;
  /** What administrators have set. */
  readonly limits: () => { readonly max_life_s: number; readonly max_views: number };
  readonly quotas?: Quotas;
  readonly clock?: Clock;
}

/** A link, as its MAC covers it: which version it opens, and with which passphrase, is part of what it grants. */
interface LinkGrant extends ShareGrant {
  readonly version: number;
  readonly passphraseHash: string | null;
}

interface LinkRow extends StoredShareRow {
  token_hash: string;
  version: number;
  max_views: number;
  passphrase_hash: string | null;
  tries: number;
}

const linkFields = (link: LinkGrant): readonly RowField[] => [...shareFields(link), link.version, link.passphraseHash];

type Refusal = 'changed' | 'revoked' | 'expired' | 'used_up' | 'too_many_tries' | 'no_longer_shared' | 'passphrase_missing' | 'passphrase_wrong';

export function createLinks({ sql, keys, audit, access, secrets, limits, quotas = NO_QUOTAS, clock = systemClock }: LinksOptions): Links {
  const { rowMacKey } = keys;
  const stands = stillStands(access);
  const shown = showShares(rowMacKey, grantees(sql));

  async function find(tokenHash: string): Promise<LinkRow | null> {
    const { rows } = await asVerifier(sql, (tx) =>
      tx.query<LinkRow>(
        `SELECT ${STORED_SHARE_COLUMNS}, token_hash, passphrase_hash, tries FROM keyguard.secret_shares
          WHERE token_hash = $1 AND grantee_type = 'link' AND subject_type = 'secret'`,
        [tokenHash],
      ),
    );
    return rows[0] ?? null;
  }

  const isLinkIntact = (row: LinkRow): Promise<boolean> => {
    const link = { ...shareGrant(row, row.token_hash), version: row.version, passphraseHash: row.passphrase_hash };
    return isIntact(rowMacKey, LINK_MAC, linkFields(link), { macKeyId: row.mac_key_id, mac: Uint8Array.from(row.mac) });
  };

  /** What the row says by itself. The claim asks again, in one step with using up a view. */
  async function whyNot(row: LinkRow): Promise<Refusal | null> {
    if (!(await isLinkIntact(row))) return 'changed';
    if (row.revoked_at_ms !== null) return 'revoked';
    if (row.expires_at_ms === null || Number(row.expires_at_ms) <= clock.nowMs()) return 'expired';
    if (row.views >= row.max_views) return 'used_up';
    return row.passphrase_hash !== null && row.tries >= MAX_TRIES ? 'too_many_tries' : null;
  }

  /** The value, as far as whoever made the link could still share it and read it. */
  async function valueFor(row: LinkRow): Promise<string | null> {
    const maker = absent(row.created_by);
    // A program hands out no more than it may do itself, and nothing once it may not come in.
    const scopes = await scopesOf(sql, rowMacKey, clock, row.created_by);
    if (scopes !== null && !['secrets:share' as const, ...GRANTED].every((permission) => scopes.has(permission))) return null;
    try {
      const isShared = await asUser(sql, row.created_by, async (tx) => {
        // Links are for people outside: who may not come in hands nothing out, not even of their own.
        if (await isDisabled(tx, row.created_by)) return false;
        const { secret } = await secrets.rows.secretOf(tx, maker, row.subject_id, 'secrets:share');
        const isSame = secret.ownerId === row.owner_id && secret.projectId === row.project_id;
        return isSame && stands(tx, { createdBy: row.created_by, permissions: row.permissions, ownerId: secret.ownerId, projectId: secret.projectId });
      });
      if (!isShared) return null;
      return (await secrets.parts.openFor(maker, row.subject_id, 'secrets:reveal', { version: row.version, allowExpired: false })).value;
    } catch (error) {
      // Deleted, destroyed, expired, changed in the database, or not theirs to share any more.
      if (error instanceof HttpProblem) return null;
      throw error;
    }
  }

  /** Whether `passphrase` is the one. A try is taken before it is judged, so no number of parallel ones judges more than the link has. */
  async function judge(row: LinkRow, passphrase: string | null): Promise<Refusal | null> {
    if (row.passphrase_hash === null) return null;
    if (passphrase === null) return 'passphrase_missing';
    const { rows } = await asVerifier(sql, (tx) =>
      tx.query('UPDATE keyguard.secret_shares SET tries = tries + 1 WHERE id = $1 AND revoked_at_ms IS NULL AND tries < $2 RETURNING id', [row.id, MAX_TRIES]),
    );
    if (rows.length === 0) return 'too_many_tries';
    return (await passwords.verify({ hash: row.passphrase_hash, password: passphrase })) ? null : 'passphrase_wrong';
  }

  /** How many views are left after this one, or `null` where somebody else had the last. */
  async function claim(row: LinkRow): Promise<number | null> {
    return asVerifier(sql, async (tx) => {
      const { rows } = await tx.query<{ views: number }>(
        // The try that was right is given back.
        `UPDATE keyguard.secret_shares SET views = views + 1, tries = greatest(tries - CASE WHEN passphrase_hash IS NULL THEN 0 ELSE 1 END, 0)
          WHERE id = $1 AND views < max_views AND revoked_at_ms IS NULL AND expires_at_ms > $2 RETURNING views`,
        [row.id, clock.nowMs()],
      );
      if (rows[0] === undefined) return null;
      await audit.recordIn(tx, {
        action: 'secret.open_link',
        outcome: 'success',
        actor: `share_link:${row.id}`,
        resource: `secret:${row.subject_id}`,
        share_id: row.id,
        version: row.version,
        views: rows[0].views,
        max_views: row.max_views,
      });
      return row.max_views - rows[0].views;
    });
  }

  return {
    async create(principal, secretId, { maxViews, expiresInSeconds, passphrase }) {
      const { max_life_s: maxSeconds, max_views: mostViews } = limits();
      if (expiresInSeconds > maxSeconds) throw new HttpProblem('invalid_request', `expires_in_s: the settings allow ${maxSeconds} seconds at most.`);
      if (maxViews > Math.min(mostViews, MAX_VIEWS)) throw new HttpProblem('invalid_request', `max_views: the settings allow ${Math.min(mostViews, MAX_VIEWS)} at most.`);
      const token = generateLinkToken({ asksForPassphrase: passphrase !== null });
      const tokenHash = hashLinkToken(keys.hashToken, token)!;
      const passphraseHash = passphrase === null ? null : await passwords.hash(passphrase);
      const row = await asUser(sql, principal.userId, async (tx) => {
        const { secret } = await secrets.rows.secretOf(tx, principal, secretId, 'secrets:share');
        await demandMayGive(tx, access, principal, secret, GRANTED);
        await quotas.demandRoom(tx, principal, 'shares');
        const nowMs = clock.nowMs();
        const link: LinkGrant = {
          id: randomUUID(),
          subjectType: 'secret',
          subjectId: secret.id,
          ownerId: secret.ownerId,
          projectId: secret.projectId,
          granteeType: 'link',
          granteeId: null,
          permissions: GRANTED,
          tokenHash,
          maxViews,
          createdBy: principal.userId,
          createdAtMs: nowMs,
          expiresAtMs: nowMs + expiresInSeconds * 1000,
          version: secret.currentVersion,
          passphraseHash,
        };
        const { rows } = await tx.query<StoredShareRow>(
          `INSERT INTO keyguard.secret_shares (id, subject_type, subject_id, owner_id, project_id, grantee_type, permissions, token_hash, max_views,
            created_by, created_at_ms, expires_at_ms, version, passphrase_hash, mac_key_id, mac)
            VALUES ($1, 'secret', $2, $3, $4, 'link', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) RETURNING ${STORED_SHARE_COLUMNS}`,
          [link.id, secret.id, link.ownerId, link.projectId, link.permissions, tokenHash, maxViews, link.createdBy, nowMs, link.expiresAtMs,
            link.version, passphraseHash, rowMacKey.keyId, await rowMac(rowMacKey, LINK_MAC, linkFields(link))],
        );
        await audit.recordIn(tx, {
          action: 'secret.create_link',
          outcome: 'success',
          actor: principal.actor,
          resource: `secret:${secretId}`,
          share_id: link.id,
          version: link.version,
          max_views: maxViews,
          expires_at_ms: link.expiresAtMs,
          asks_for_passphrase: passphraseHash !== null,
        });
        return rows[0]!;
      });
      return { share: (await shown([row]))[0]!, token };
    },

    async isOpen({ userId }, shareId) {
      const { rows } = await asUser(sql, userId, (tx) =>
        tx.query(
          `SELECT 1 FROM keyguard.secret_shares
            WHERE id = $1 AND created_by = $2 AND grantee_type = 'link' AND views < max_views AND revoked_at_ms IS NULL AND expires_at_ms > $3`,
          [shareId, userId, clock.nowMs()],
        ),
      );
      return rows.length > 0;
    },

    async open(token, passphrase) {
      const tokenHash = hashLinkToken(keys.hashToken, token);
      const row = tokenHash === null ? null : await find(tokenHash);
      // Of what nobody ever made there is nothing to write down: the limits of addresses bound it.
      if (row === null) return null;
      const refuse = async (code: Refusal): Promise<null> => {
        await audit.record({ action: 'secret.open_link', outcome: 'refused', actor: `share_link:${row.id}`, resource: `secret:${row.subject_id}`, share_id: row.id, code });
        return null;
      };
      const refusal = (await whyNot(row)) ?? (await judge(row, passphrase));
      if (refusal !== null) return refuse(refusal);
      const value = await valueFor(row);
      if (value === null) return refuse('no_longer_shared');
      const viewsLeft = await claim(row);
      if (viewsLeft !== null) return { value, viewsLeft, expiresAtMs: Number(row.expires_at_ms) };
      // Ended since it was looked at: the row says how.
      const ended = await find(row.token_hash);
      return refuse((ended === null ? null : await whyNot(ended)) ?? 'used_up');
    },
  };
}
