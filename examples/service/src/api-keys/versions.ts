/**
 * The versions of a key, and how they move: the rotation engine of the library decides, and this room reads its state from the rows and
 * writes what it says. A version that is in the making has no row: its value is tried before anything is written, and it is created and
 * activated in one transaction. So a process that dies at whatever step leaves the version that was in use.
 */
import { apply, decide, parseRotationState, type RotationPolicy, type RotationState, type RotationStep, type RotationVersion } from '@keyguard/core/rotation';
import { isRejected } from '@keyguard/core/errors';
import type { SealedValue } from '@keyguard/core/vault';
import type { SqlTransaction } from '@keyguard/storage-node/postgres';
import { asJobs } from '../db/as-user.ts';
import { integer } from '../db/values.ts';
import { notIntact, type StoredApiKey } from './rows.ts';

const SECOND_MS = 1000;
export const DAY_MS = 24 * 60 * 60 * SECOND_MS;
/** For how long a value that is out of use can still be brought back. Then it is destroyed. */
export const RETIRED_KEPT_MS = 7 * DAY_MS;

export type KeyVersionState = 'active' | 'overlap' | 'retired' | 'destroyed';

/** A version as it may be shown. */
export interface KeyVersion {
  readonly version: number;
  readonly state: KeyVersionState;
  readonly last4: string;
  readonly createdBy: string;
  readonly reason: string | null;
  readonly createdAtMs: number;
  /** When the provider took the value, before it was put into use; `null` where nobody asked. */
  readonly verifiedAtMs: number | null;
  readonly overlapUntilMs: number | null;
  readonly retiredAtMs: number | null;
  readonly destroyedAtMs: number | null;
}

/** What a rotation goes by where a key says nothing. */
export interface RotationSettings {
  readonly every_days: number | null;
  readonly overlap_s: number;
}

interface VersionRow {
  version: number;
  state: KeyVersionState;
  last4: string;
  created_by: string;
  reason: string | null;
  created_at_ms: unknown;
  verified_at_ms: unknown;
  overlap_until_ms: unknown;
  retired_at_ms: unknown;
  destroyed_at_ms: unknown;
}

const LIVE = `state <> 'destroyed'`;
const COLUMNS = 'version, state, last4, created_by, reason, created_at_ms, verified_at_ms, overlap_until_ms, retired_at_ms, destroyed_at_ms';
const timeOrNull = (value: unknown): number | null => (value === null ? null : integer(value));

/** `overlapSeconds` wins over what the key says, and that over the settings. */
export function policyFor({ rotateEveryDays, overlapSeconds: own }: Pick<StoredApiKey, 'rotateEveryDays' | 'overlapSeconds'>, settings: RotationSettings, overlapSeconds: number | null = null): RotationPolicy {
  const everyDays = rotateEveryDays ?? settings.every_days ?? 0;
  return {
    intervalMs: everyDays === 0 ? null : everyDays * DAY_MS,
    maxAgeMs: null,
    maxUses: null,
    events: [],
    overlapMs: (overlapSeconds ?? own ?? settings.overlap_s) * SECOND_MS,
    destroyAfterMs: RETIRED_KEPT_MS,
    retryAfterMs: 0,
  };
}

/** Whether the rotation of a key is due, and when it will be; `null` for never. */
export function dueOf(key: Pick<StoredApiKey, 'rotateEveryDays' | 'overlapSeconds' | 'rotatedAtMs' | 'currentVersion' | 'isActive'>, settings: RotationSettings, nowMs: number): { readonly isDue: boolean; readonly nextMs: number | null } {
  const policy = policyFor(key, settings);
  if (!key.isActive || policy.intervalMs === null) return { isDue: false, nextMs: null };
  const active = { version: key.currentVersion, state: 'active', createdAtMs: key.rotatedAtMs, activatedAtMs: key.rotatedAtMs, overlapUntilMs: null, retiredAtMs: null } as const;
  const { due } = decide(policy, { lastVersion: key.currentVersion, versions: [active], uses: 0, request: null, retryAtMs: null }, nowMs);
  return { isDue: due.some(({ action }) => action === 'create'), nextMs: key.rotatedAtMs + policy.intervalMs };
}

function versionIn(row: VersionRow): KeyVersion {
  return {
    version: row.version,
    state: row.state,
    last4: row.last4,
    createdBy: row.created_by,
    reason: row.reason,
    createdAtMs: integer(row.created_at_ms),
    verifiedAtMs: timeOrNull(row.verified_at_ms),
    overlapUntilMs: timeOrNull(row.overlap_until_ms),
    retiredAtMs: timeOrNull(row.retired_at_ms),
    destroyedAtMs: timeOrNull(row.destroyed_at_ms),
  };
}

/**
 * Up to `limit` versions before the number `before`, newest first. `tx` is of whoever was let see the key: who acts for people sees no
 * version by themself.
 */
export function pageOfVersions(tx: SqlTransaction, keyId: string, before: number | null, limit: number): Promise<readonly KeyVersion[]> {
  return asJobs(tx, async (jobs) => {
    const { rows } = await jobs.query<VersionRow>(
      `SELECT ${COLUMNS} FROM keyguard.secret_versions WHERE subject_type = 'api_key' AND subject_id = $1 AND ($2::integer IS NULL OR version < $2)
        ORDER BY version DESC LIMIT $3`,
      [keyId, before, limit],
    );
    return rows.map(versionIn);
  });
}

/** Those with a value, by ascending number. */
function liveVersions(tx: SqlTransaction, keyId: string): Promise<readonly KeyVersion[]> {
  return asJobs(tx, async (jobs) => {
    const { rows } = await jobs.query<VersionRow>(
      `SELECT ${COLUMNS} FROM keyguard.secret_versions WHERE subject_type = 'api_key' AND subject_id = $1 AND ${LIVE} ORDER BY version`,
      [keyId],
    );
    return rows.map(versionIn);
  });
}

/** A value that takes over, sealed for its number. */
export interface NewKeyVersion {
  readonly version: number;
  readonly sealed: SealedValue;
  readonly last4: string;
  readonly createdBy: string;
  readonly reason: string | null;
  readonly verifiedAtMs: number | null;
}

/** `tx` acts for who stores the value, who may add a version and can read none. */
export async function insertVersion(tx: SqlTransaction, keyId: string, made: NewKeyVersion, createdAtMs: number): Promise<void> {
  await tx.query(
    `INSERT INTO keyguard.secret_versions (subject_type, subject_id, version, ciphertext, wrapped_dek, kek_id, state, created_by, reason, created_at_ms, last4, verified_at_ms)
      VALUES ('api_key', $1, $2, $3, $4, $5, 'active', $6, $7, $8, $9, $10)`,
    [keyId, made.version, made.sealed.ciphertext, made.sealed.wrappedDek, made.sealed.kekId, made.createdBy, made.reason, createdAtMs, made.last4, made.verifiedAtMs],
  );
}

/** One that was destroyed has nothing left to be done to it, and may be left out of a state. */
function stateOf({ currentVersion }: StoredApiKey, live: readonly KeyVersion[]): RotationState {
  if (live.find(({ state }) => state === 'active')?.version !== currentVersion) throw notIntact();
  try {
    return parseRotationState({
      lastVersion: currentVersion,
      versions: live.map(({ version, state, createdAtMs, overlapUntilMs, retiredAtMs }) => ({
        version, state, createdAtMs, activatedAtMs: createdAtMs, retiredAtMs, overlapUntilMs: state === 'retired' ? retiredAtMs : overlapUntilMs,
      })),
      uses: 0,
      request: null,
      retryAtMs: null,
    });
  } catch (error) {
    if (isRejected(error)) throw notIntact();
    throw error;
  }
}

/** Writes what became of the versions that there were. */
async function writeMoved(tx: SqlTransaction, keyId: string, before: RotationState, after: RotationState, nowMs: number): Promise<void> {
  const known = new Map(before.versions.map((one) => [one.version, one]));
  const moved = after.versions.filter((one) => known.has(one.version) && known.get(one.version) !== one);
  await asJobs(tx, async (jobs) => {
    for (const { version, state, overlapUntilMs, retiredAtMs } of moved) {
      const isDestroyed = state === 'destroyed';
      await jobs.query(
        `UPDATE keyguard.secret_versions SET state = $3, overlap_until_ms = $4, retired_at_ms = $5, destroyed_at_ms = $6,
            ciphertext = CASE WHEN $7 THEN NULL ELSE ciphertext END, wrapped_dek = CASE WHEN $7 THEN NULL ELSE wrapped_dek END,
            kek_id = CASE WHEN $7 THEN NULL ELSE kek_id END
          WHERE subject_type = 'api_key' AND subject_id = $1 AND version = $2`,
        [keyId, version, state, state === 'overlap' ? overlapUntilMs : null, retiredAtMs, isDestroyed ? nowMs : null, isDestroyed],
      );
    }
  });
}

/**
 * Puts `made` into use and the version before it into its overlap, or out of use where there is none. The key's row MUST be locked by
 * `tx`, which acts for who made it. Answers with when the new version took over, and until when the old one overlaps.
 */
export async function activateVersion(tx: SqlTransaction, key: StoredApiKey, made: NewKeyVersion, policy: RotationPolicy, nowMs: number): Promise<{ readonly atMs: number; readonly overlapUntilMs: number | null }> {
  const before = stateOf(key, await liveVersions(tx, key.id));
  const { version } = made;
  // Tried, or vouched for by who said not to.
  const steps: readonly RotationStep[] = [{ step: 'created', version }, { step: 'verified', version }, { step: 'activated', version }];
  let after = steps.reduce((state, step) => apply(policy, state, step, nowMs), before);
  const { createdAtMs: atMs } = after.versions.find((one) => one.version === version)!;
  // Without an overlap it is out of use at once. What else is due is for the job, which writes it down.
  for (const due of retirementsIn(policy, after, nowMs)) if (due.version === key.currentVersion) after = apply(policy, after, due, nowMs);
  await writeMoved(tx, key.id, before, after, nowMs);
  await insertVersion(tx, key.id, made, atMs);
  const replaced: RotationVersion | undefined = after.versions.find((one) => one.version === key.currentVersion);
  return { atMs, overlapUntilMs: replaced?.state === 'overlap' ? replaced.overlapUntilMs : null };
}

function retirementsIn(policy: RotationPolicy, state: RotationState, nowMs: number): readonly RotationStep[] {
  return decide(policy, state, nowMs).due.flatMap(({ action, version }): RotationStep[] =>
    action === 'retire' ? [{ step: 'retired', version }] : action === 'destroy' ? [{ step: 'destroyed', version }] : [],
  );
}

/** Retires and destroys what is due of a key whose row `tx` has locked. Answers with what was done. */
export async function endVersions(tx: SqlTransaction, key: StoredApiKey, policy: RotationPolicy, nowMs: number): Promise<readonly RotationStep[]> {
  const before = stateOf(key, await liveVersions(tx, key.id));
  const steps = retirementsIn(policy, before, nowMs);
  if (steps.length > 0) await writeMoved(tx, key.id, before, steps.reduce((state, step) => apply(policy, state, step, nowMs), before), nowMs);
  return steps;
}

/** Destroys every value of a key: without its wrapped key a value is noise for ever, and the noise goes as well. */
export async function destroyVersions(tx: SqlTransaction, keyId: string, nowMs: number): Promise<void> {
  await asJobs(tx, (jobs) =>
    jobs.query(
      `UPDATE keyguard.secret_versions SET state = 'destroyed', ciphertext = NULL, wrapped_dek = NULL, kek_id = NULL, overlap_until_ms = NULL, destroyed_at_ms = $2
        WHERE subject_type = 'api_key' AND subject_id = $1 AND ${LIVE}`,
      [keyId, nowMs],
    ),
  );
}
