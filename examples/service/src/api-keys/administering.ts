/** What people do with the keys of their projects, apart from giving them new values. */
import { randomUUID } from 'node:crypto';
import { pageOf, pageStart, type Page, type PageRequest } from '@keyguard/storage-node/postgres';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import type { Principal } from '../auth/principal.ts';
import { asUser } from '../db/as-user.ts';
import { demandMatch } from '../http/preconditions.ts';
import { HttpProblem } from '../http/problems.ts';
import { shareProject } from '../projects/lock.ts';
import { demandActive, type KeyParts } from './parts.ts';
import type { Probing } from './probing.ts';
import { changeKey, insertKey, KEY_COLUMNS, type KeyChange, type KeyRow, type StoredApiKey } from './rows.ts';
import { DAY_MS, destroyVersions, insertVersion, pageOfVersions, type KeyVersion } from './versions.ts';

const FIRST = 1;

export interface NewApiKey extends Pick<StoredApiKey, 'provider' | 'name' | 'options' | 'rotateEveryDays' | 'overlapSeconds' | 'expiresAtMs' | 'isDefault'> {
  /** Secret. */
  readonly value: string;
  /** Untrusted: looked up among what the operator allows. */
  readonly baseUrl: string | null;
  /** Whether the provider is asked before. */
  readonly verify: boolean;
}

export interface ApiKeyFilter {
  readonly projectId?: string | undefined;
  readonly provider?: string | undefined;
  readonly rotationDue?: boolean | undefined;
}

export interface Administering {
  /** @throws HttpProblem `not_found`, `forbidden`, `project_archived`, `upstream_not_allowed`, `verification_failed`, `rate_limited` */
  create(principal: Principal, projectId: string, key: NewApiKey): Promise<StoredApiKey>;
  /** Those of the projects in which the caller may see keys, newest first. */
  list(principal: Principal, filter: ApiKeyFilter, request: PageRequest): Promise<Page<StoredApiKey>>;
  /** @throws HttpProblem `not_found`, `forbidden` */
  get(principal: Principal, id: string): Promise<StoredApiKey>;
  /** Newest first; `before`: only those with a smaller number. @throws HttpProblem `not_found`, `forbidden` */
  versions(principal: Principal, id: string, page: { readonly limit: number; readonly before: number | null }): Promise<Page<KeyVersion>>;
  /** @throws HttpProblem `not_found`, `forbidden`, `illegal_transition`, `precondition_failed`, `integrity_failed` */
  update(principal: Principal, id: string, change: Pick<KeyChange, 'name' | 'rotateEveryDays' | 'overlapSeconds' | 'expiresAtMs'>, ifMatch: readonly string[] | null): Promise<StoredApiKey>;
  /** Makes it the key that the devices of its project use with its provider. @throws HttpProblem likewise */
  setDefault(principal: Principal, id: string, ifMatch: readonly string[] | null): Promise<StoredApiKey>;
  /** Destroys all its values. A revoked key stays revoked; one that was changed in the database can be revoked. @throws HttpProblem `not_found`, `forbidden` */
  revoke(principal: Principal, id: string): Promise<StoredApiKey>;
}

export function administering(parts: KeyParts, probing: Probing): Administering {
  const { sql, rowMacKey, sealing, upstreams, projects, clock, onChanged, rotation } = parts;

  async function demandWritable(tx: SqlTransaction, principal: Principal, projectId: string): Promise<void> {
    const { archivedAtMs } = await projects.demandIn(tx, principal, projectId, 'api_keys:write');
    if (archivedAtMs !== null) throw new HttpProblem('project_archived', 'This project is archived: nothing comes into it any more.');
  }

  /** `change` in one transaction with its entry, for a key that is locked and as it was written. */
  async function changed(principal: Principal, id: string, work: (tx: SqlTransaction, key: StoredApiKey) => Promise<StoredApiKey>, ifMatch: readonly string[] | null): Promise<StoredApiKey> {
    const after = await asUser(sql, principal.userId, async (tx) => {
      const key = await parts.lockNewestIn(tx, principal, id);
      demandMatch(ifMatch, String(key.revision));
      demandActive(key);
      return work(tx, key);
    });
    onChanged();
    return after;
  }

  return {
    async create(principal, projectId, { provider, value, verify, ...given }) {
      const { userId, actor } = principal;
      const baseUrl = given.baseUrl === null ? null : upstreams.examine(provider, given.baseUrl);
      // Asked before the work of sealing, and again where it counts.
      await asUser(sql, userId, (tx) => demandWritable(tx, principal, projectId));
      const now = clock.nowMs();
      const key: Omit<StoredApiKey, 'intact'> = {
        ...given, id: randomUUID(), projectId, ownerId: userId, provider, last4: value.slice(-4), source: 'api', baseUrl, currentVersion: FIRST, isActive: true,
        rotatedAtMs: now, lastUsedAtMs: null, importTag: null, revision: FIRST, createdAtMs: now, revokedAtMs: null,
      };
      if (verify) await probing.demand(principal, key, value);
      const verifiedAtMs = verify ? clock.nowMs() : null;
      const sealed = await sealing.seal(key, FIRST, value);
      const stored = await asUser(sql, userId, async (tx) => {
        await shareProject(tx, projectId);
        await demandWritable(tx, principal, projectId);
        await parts.lockDefault(tx, provider);
        const displaced = key.isDefault ? await parts.displaceIn(tx, projectId, provider) : [];
        const made = await insertKey(tx, rowMacKey, key);
        await insertVersion(tx, key.id, { version: FIRST, sealed, last4: key.last4, createdBy: userId, reason: null, verifiedAtMs }, now);
        for (const one of displaced) await parts.recordIn(tx, actor, 'api_key.displace', one, { in_favour_of: key.id });
        await parts.recordIn(tx, actor, 'api_key.create', made, { last4: key.last4, verified: verify, is_default: key.isDefault, ...(baseUrl !== null && { base_url: baseUrl }) });
        return made;
      });
      onChanged();
      return stored;
    },

    async list(principal, { projectId, provider, rotationDue }, request) {
      const start = pageStart(request);
      const { limit = 50 } = request;
      const everyDays = rotation().every_days ?? 0;
      const { rows } = await asUser(sql, principal.userId, async (tx) => {
        const { everywhere, projectIds } = await projects.reachIn(tx, principal, 'api_keys:read');
        return tx.query<KeyRow>(
          `SELECT ${KEY_COLUMNS} FROM keyguard.stored_api_keys
            WHERE ($1::bigint IS NULL OR (created_at_ms, id) < ($1::bigint, $2::text)) AND ($4 OR project_id = ANY ($5::text[]))
              AND ($6::text IS NULL OR project_id = $6) AND ($7::text IS NULL OR provider = $7)
              AND ($8::boolean IS NULL OR $8 = (is_active AND coalesce(rotate_every_days, $9::integer) > 0
                AND rotated_at_ms + coalesce(rotate_every_days, $9::integer) * ${DAY_MS}::bigint <= $10::bigint))
            ORDER BY created_at_ms DESC, id DESC LIMIT $3`,
          [start?.[0] ?? null, start?.[1] ?? null, limit + 1, everywhere, projectIds, projectId ?? null, provider ?? null, rotationDue ?? null, everyDays, clock.nowMs()],
        );
      });
      const page = pageOf(rows, limit, (row) => [Number(row.created_at_ms), row.id], parts.read);
      return { items: await Promise.all(page.items), nextCursor: page.nextCursor };
    },

    get: (principal, id) => asUser(sql, principal.userId, (tx) => parts.heldIn(tx, principal, id, 'api_keys:read')),

    async versions(principal, id, { limit, before }) {
      const found = await asUser(sql, principal.userId, async (tx) => {
        await parts.heldIn(tx, principal, id, 'api_keys:read');
        return pageOfVersions(tx, id, before, limit + 1);
      });
      const items = found.slice(0, limit);
      return { items, nextCursor: found.length > limit ? String(items.at(-1)!.version) : null };
    },

    update: (principal, id, change, ifMatch) =>
      changed(
        principal,
        id,
        async (tx, key) => {
          const after = await changeKey(tx, rowMacKey, key, change);
          await parts.recordIn(tx, principal.actor, 'api_key.update', after, { changed: Object.keys(change) });
          return after;
        },
        ifMatch,
      ),

    async setDefault(principal, id, ifMatch) {
      // Of what it will be the default never changes; that it is asked for here is of no account to who may not see it.
      const { provider } = await asUser(sql, principal.userId, (tx) => parts.heldIn(tx, principal, id, 'api_keys:write'));
      const after = await asUser(sql, principal.userId, async (tx) => {
        await parts.lockDefault(tx, provider);
        const key = await parts.lockNewestIn(tx, principal, id);
        demandMatch(ifMatch, String(key.revision));
        demandActive(key);
        if (key.isDefault) return key;
        const displaced = await parts.displaceIn(tx, key.projectId, provider);
        const made = await changeKey(tx, rowMacKey, key, { isDefault: true });
        for (const one of displaced) await parts.recordIn(tx, principal.actor, 'api_key.displace', one, { in_favour_of: id });
        await parts.recordIn(tx, principal.actor, 'api_key.set_default', made);
        return made;
      });
      onChanged();
      return after;
    },

    async revoke(principal, id) {
      const revoked = await asUser(sql, principal.userId, async (tx) => {
        const key = await parts.lockIn(tx, principal, id);
        if (!key.isActive && key.intact) return key;
        const now = clock.nowMs();
        const after = await changeKey(tx, rowMacKey, key, { isActive: false, isDefault: false, revokedAtMs: key.revokedAtMs ?? now });
        await destroyVersions(tx, id, now);
        await parts.recordIn(tx, principal.actor, 'api_key.revoke', after);
        return after;
      });
      onChanged();
      return revoked;
    },
  };
}
