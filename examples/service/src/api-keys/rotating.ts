/**
 * New values for keys. A value is tried at its provider and sealed before anything is written; then one transaction puts it into use
 * and the one before it into its overlap. Whoever dies at whatever step leaves a key with one value in use, and that is one that worked.
 */
import type { JsonValue } from '@keyguard/core/seams';
import { isUnavailable, UnavailableError } from '@keyguard/core/errors';
import type { SealedValue } from '@keyguard/core/vault';
import type { Principal } from '../auth/principal.ts';
import { asJobs, asUser } from '../db/as-user.ts';
import { demandMatch } from '../http/preconditions.ts';
import { HttpProblem } from '../http/problems.ts';
import type { ProbeOutcome } from '../llm/probe.ts';
import { sealedIn, type SealedRow } from '../secrets/rows.ts';
import { inTurns } from '../secrets/turns.ts';
import type { Found } from './newest.ts';
import { demandActive, keyEntry, type KeyParts } from './parts.ts';
import type { Probing } from './probing.ts';
import { changeKey, KEYS_SEAM, KEY_COLUMNS, notIntact, SYSTEM, type KeyRow, type StoredApiKey } from './rows.ts';
import { activateVersion, endVersions, policyFor, RETIRED_KEPT_MS } from './versions.ts';

const MAX_TRIES = 20;
const MAX_NUMBERS = 32;
const KEYS_AT_ONCE = 100;

export interface Replacing {
  /** Of the value that is replaced; `null`: as the key or the settings say. */
  readonly overlapSeconds: number | null;
  readonly reason: string | null;
  /** Whether the provider is asked before. */
  readonly verify: boolean;
  /** Of the key from now on; `undefined`: as it was, unless that time is over. */
  readonly expiresAtMs: number | null | undefined;
  readonly ifMatch: readonly string[] | null;
}

export interface Rotating {
  /**
   * @throws HttpProblem `not_found`, `forbidden`, `illegal_transition`, `precondition_failed`, `integrity_failed`, `upstream_not_allowed`,
   *   `verification_failed`, `rate_limited`; then nothing was changed
   */
  rotate(principal: Principal, id: string, value: string, replacing: Replacing): Promise<StoredApiKey>;
  /** Puts the value of an earlier version into use, as a new version. @throws HttpProblem likewise, and `version_destroyed` */
  restore(principal: Principal, id: string, version: number, replacing: Replacing): Promise<StoredApiKey>;
  /** Tries the current value. On record before it is answered. @throws HttpProblem as `rotate`, but for `verification_failed` */
  test(principal: Principal, id: string): Promise<ProbeOutcome & { readonly checkedAtMs: number }>;
  /** Takes values out of use whose overlap is over, and destroys those that were out of use for long enough. */
  endDue(): Promise<void>;
}

interface Opening extends Found {
  readonly row: SealedRow | undefined;
}

export function rotating(parts: KeyParts, probing: Probing): Rotating {
  const { sql, rowMacKey, sealing, newest, clock, onChanged, rotation, audit } = parts;
  const turns = inTurns();

  /** The key to be written and one of its versions; the current one for `null`. */
  async function settled(principal: Principal, id: string, version: number | null): Promise<Opening> {
    const found = await newest.settled<Opening>(() =>
      asUser(sql, principal.userId, async (tx) => {
        const key = await parts.heldIn(tx, principal, id, 'api_keys:write');
        if (key.intact) demandActive(key);
        // Who acts for people can read no value, so it is read for them once they were let.
        const { rows } = await asJobs(tx, (jobs) =>
          jobs.query<SealedRow>(`SELECT version, state, ciphertext, wrapped_dek, kek_id FROM keyguard.secret_versions WHERE subject_type = 'api_key' AND subject_id = $1 AND version = $2`, [
            id,
            version ?? key.currentVersion,
          ]),
        );
        return { key, row: rows[0], lastRow: await newest.lastRowIn(tx, id) };
      }),
      notIntact,
    );
    // A key that is not there was thrown for.
    return found!;
  }

  /** A value, for people; who hear of one that does not open what they hear of a row. */
  async function opened(key: StoredApiKey, version: number, sealed: SealedValue): Promise<string> {
    try {
      return await sealing.open(key, version, sealed);
    } catch (error) {
      throw isUnavailable(error) && error.seam === KEYS_SEAM ? notIntact() : error;
    }
  }

  function expiryAfter({ expiresAtMs: before }: StoredApiKey, given: number | null | undefined): number | null {
    if (given !== undefined) return given;
    if (before !== null && before <= clock.nowMs()) throw new HttpProblem('illegal_transition', 'This key has expired: say with the new value until when that is good.');
    return before;
  }

  async function commit(principal: Principal, id: string, value: string, verifiedAtMs: number | null, action: string, { overlapSeconds, reason, expiresAtMs, ifMatch }: Replacing, more: Readonly<Record<string, JsonValue>>): Promise<StoredApiKey> {
    for (let tries = 0; tries < MAX_TRIES; tries += 1) {
      const before = await asUser(sql, principal.userId, (tx) => parts.heldIn(tx, principal, id, 'api_keys:write'));
      // Whoever came too late is ready for more than one number the next time, or two processes could keep each other waiting.
      const sealed = new Map<number, SealedValue>();
      for (let version = before.currentVersion + 1; version <= before.currentVersion + Math.min(2 ** tries, MAX_NUMBERS); version += 1) {
        sealed.set(version, await sealing.seal(before, version, value));
      }
      const done = await asUser(sql, principal.userId, async (tx) => {
        const key = await parts.lockNewestIn(tx, principal, id);
        demandMatch(ifMatch, String(key.revision));
        demandActive(key);
        const version = key.currentVersion + 1;
        const envelope = sealed.get(version);
        if (envelope === undefined) return null;
        const last4 = value.slice(-4);
        const expiry = expiryAfter(key, expiresAtMs);
        const made = { version, sealed: envelope, last4, createdBy: principal.userId, reason, verifiedAtMs };
        const { atMs, overlapUntilMs } = await activateVersion(tx, key, made, policyFor(key, rotation(), overlapSeconds), clock.nowMs());
        const after = await changeKey(tx, rowMacKey, key, { currentVersion: version, last4, rotatedAtMs: atMs, expiresAtMs: expiry });
        await parts.recordIn(tx, principal.actor, action, after, {
          last4, replaced_version: key.currentVersion, verified: verifiedAtMs !== null, overlap_until: overlapUntilMs === null ? null : new Date(overlapUntilMs).toISOString(),
          ...(reason !== null && { reason }), ...more,
        });
        return after;
      });
      if (done !== null) return done;
    }
    throw new UnavailableError(KEYS_SEAM, 'This key is being changed all the time.', { code: 'overloaded' });
  }

  async function replace(principal: Principal, key: StoredApiKey, value: string, action: string, replacing: Replacing, more: Readonly<Record<string, JsonValue>> = {}): Promise<StoredApiKey> {
    demandMatch(replacing.ifMatch, String(key.revision));
    expiryAfter(key, replacing.expiresAtMs);
    if (replacing.verify) await probing.demand(principal, key, value);
    const verifiedAtMs = replacing.verify ? clock.nowMs() : null;
    const after = await turns(key.id, () => commit(principal, key.id, value, verifiedAtMs, action, replacing, more));
    onChanged();
    return after;
  }

  return {
    async rotate(principal, id, value, replacing) {
      const { key } = await settled(principal, id, null);
      return replace(principal, key, value, 'api_key.rotate', replacing);
    },

    async restore(principal, id, version, replacing) {
      const { key, row } = await settled(principal, id, version);
      if (row === undefined) throw new HttpProblem('not_found', 'There is no such version.');
      if (version === key.currentVersion) throw new HttpProblem('illegal_transition', 'This version is the current one.');
      const sealed = sealedIn(row);
      if (sealed === null) throw new HttpProblem('version_destroyed', 'This version was destroyed, for ever.');
      // A value that comes back after it was destroyed was put back by somebody else.
      if ((await newest.isDestroyed(id, version)) !== false) throw notIntact();
      const value = await opened(key, version, sealed);
      return replace(principal, key, value, 'api_key.restore_version', { ...replacing, reason: replacing.reason ?? `restored from version ${version}` }, { restored_version: version });
    },

    async test(principal, id) {
      const { key, row } = await settled(principal, id, null);
      const sealed = row === undefined ? null : sealedIn(row);
      if (sealed === null) throw notIntact();
      const outcome = await probing.ask(principal, key, await opened(key, key.currentVersion, sealed));
      const { ok, code, status, latencyMs } = outcome;
      await audit.record({ ...keyEntry(principal.actor, 'api_key.test', key), outcome: ok ? 'success' : 'failed', code, status, latency_ms: latencyMs });
      return { ...outcome, checkedAtMs: clock.nowMs() };
    },

    async endDue() {
      const now = clock.nowMs();
      const { rows: due } = await asJobs(sql, (tx) =>
        tx.query<{ subject_id: string }>(
          `SELECT DISTINCT subject_id FROM keyguard.secret_versions
            WHERE subject_type = 'api_key' AND state IN ('overlap', 'retired') AND (overlap_until_ms <= $1 OR retired_at_ms <= $2) LIMIT ${KEYS_AT_ONCE}`,
          [now, now - RETIRED_KEPT_MS],
        ),
      );
      const failures: unknown[] = [];
      // One that was changed in the database is in nobody else's way.
      for (const { subject_id: id } of due) await endOne(id, now).catch((error: unknown) => failures.push(error));
      if (failures.length > 0) throw failures[0];
    },
  };

  async function endOne(id: string, now: number): Promise<void> {
    await asJobs(sql, async (tx) => {
      // Another replica is at it, or somebody who rotates the key; there is a next time.
      const { rows } = await tx.query<KeyRow>(`SELECT ${KEY_COLUMNS} FROM keyguard.stored_api_keys WHERE id = $1 FOR UPDATE SKIP LOCKED`, [id]);
      const key = rows[0] === undefined ? null : await parts.read(rows[0]);
      // What was changed in the database is left for who looks into it.
      if (key === null || !key.intact) return;
      for (const { step, version } of await endVersions(tx, key, policyFor(key, rotation()), now)) {
        await audit.recordIn(tx, keyEntry(SYSTEM, step === 'retired' ? 'api_key.retire_version' : 'api_key.destroy_version', key, { version }));
      }
    });
  }
}
