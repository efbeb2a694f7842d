/**
 * `Idempotency-Key`: a creation that is asked for again under the same key, by the same caller and with the same input, happens
 * once, whatever is killed in between.
 *
 * A request claims its key for a short lease. The transaction that creates says, before its audit entry, that the claim was carried
 * out, and fails where the claim is no longer its own: so two copies cannot both commit, however slow one of them is. The answer is
 * sealed and kept after the commit, before it leaves. A process that dies before the commit leaves a key that is free again when
 * its lease is over; one that dies between commit and answer leaves a key that says so for ever after (`idempotency_reply_lost`).
 *
 * @see docs/decisions/0021-idempotency-keys.md; draft-ietf-httpapi-idempotency-key-header
 */
import { randomUUID } from 'node:crypto';
import { fromUtf8, utf8 } from '@keyguard/core/bytes';
import { canonicalJson } from '@keyguard/core/canonical-json';
import type { Clock, JsonValue } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { open, seal, type VaultPlace } from '@keyguard/core/vault';
import type { SqlClient, SqlTransaction } from '@keyguard/storage-node/postgres';
import { nodeVaultPrimitives } from '@keyguard/storage-node/vault';
import type { AuditLog } from '../audit/log.ts';
import { credentialOf, type Principal } from '../auth/principal.ts';
import { asJobs, asUser } from '../db/as-user.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { SealedTable } from '../keys/sealed-tables.ts';
import type { Answer, ShownOnce } from './operations.ts';
import { HttpProblem } from './problems.ts';
import { beforeEntry } from './request-context.ts';

/** How long an answer is kept. */
export const KEPT_MS = 24 * 60 * 60 * 1000;
/** For how long an answer that shows a value is given to who lost it on the way: as long as a client tries again by itself, and no longer. */
export const SHOWN_AGAIN_MS = 10 * 60_000;
/** How long a request may hold a key: more than any handler takes, since no statement may take longer than ten seconds. */
export const LEASE_MS = 20_000;
const PURGED_AT_ONCE = 1000;
const TRIES = 5;

const QUOTED = /^"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"$/;
const BARE = /^[A-Za-z0-9._~+/=:-]{1,255}$/;

/**
 * The key that `header` (untrusted) names: a string of structured headers (RFC 9651), or, as most clients send it, without quotes.
 * @throws HttpProblem `malformed_request`
 */
export function readIdempotencyKey(header: string | readonly string[] | undefined): string | null {
  if (header === undefined) return null;
  if (typeof header === 'string') {
    const key = QUOTED.exec(header.trim())?.[1] ?? BARE.exec(header.trim())?.[0];
    if (key !== undefined) return key;
  }
  throw new HttpProblem('malformed_request', 'An Idempotency-Key is one text of 1 to 255 printable characters: a UUID is best.');
}

export interface IdempotentRequest {
  /** Of the caller's choice. */
  readonly key: string;
  readonly operation: { readonly id: string; readonly action: string };
  readonly principal: Principal;
  /** What the same key must come with again. */
  readonly input: JsonValue;
  /** Of an operation whose answer may show a value once. */
  readonly shownOnce?: ShownOnce;
}

/** To whom an answer with a value was shown, and when. Sealed with it, so that nobody makes it younger or somebody else's. */
interface Shown {
  readonly to: string;
  readonly atMs: number;
}

type KeptAnswer = Answer & { readonly shown?: Shown };

export interface Idempotency {
  /**
   * The answer of `work`, which is carried out at most once for a key; or what was answered before.
   * @throws HttpProblem `idempotency_in_flight`, `idempotency_key_reused`, `idempotency_reply_lost`, `idempotency_reply_withheld` for a
   * value that is not to be shown again, and what `work` throws, which sets the key free
   */
  once(request: IdempotentRequest, work: () => Promise<Answer>): Promise<Answer>;
  /** Forgets what is old. */
  purge(): Promise<void>;
  /** Frees what is held by requests that can no longer run. MUST NOT be called where other processes serve. */
  releaseAll(): Promise<void>;
}

export interface IdempotencyOptions {
  readonly sql: SqlClient;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly onFault: (error: unknown) => void;
  readonly clock?: Clock;
}

interface Row {
  id: string;
  fingerprint: string;
  claim_id: string;
  state: 'in_flight' | 'carried_out' | 'answered';
  lease_expires_at_ms: unknown;
  expires_at_ms: unknown;
  ciphertext: Uint8Array | null;
  wrapped_dek: Uint8Array | null;
  kek_id: string | null;
}

interface Claim {
  readonly userId: string;
  readonly operation: string;
  readonly keyHash: string;
  readonly fingerprint: string;
  readonly claimId: string;
}

type ReplyPlace = Pick<Claim, 'userId' | 'operation' | 'keyHash' | 'fingerprint' | 'claimId'>;

function replyPlace(deploymentId: string, { userId, operation, keyHash, fingerprint, claimId }: ReplyPlace): VaultPlace {
  return {
    deploymentId,
    table: 'idempotency_keys',
    row: claimId,
    column: 'reply',
    version: 1,
    // All that says whose answer to what it is: a row that was changed to somebody else's does not open.
    purpose: `idempotent-reply\n${operation}\n${userId}\n${keyHash}\n${fingerprint}`,
  };
}

/** For the rotation of the key that wraps theirs. */
export function sealedReplies(deploymentId: string): SealedTable {
  return {
    name: 'keyguard.idempotency_keys',
    key: [['id', 'text']],
    columns: ['t.user_id', 't.operation', 't.key_hash', 't.fingerprint', 't.claim_id'],
    place: (row) =>
      replyPlace(deploymentId, {
        userId: row['user_id'] as string,
        operation: row['operation'] as string,
        keyHash: row['key_hash'] as string,
        fingerprint: row['fingerprint'] as string,
        claimId: row['claim_id'] as string,
      }),
  };
}

export function createIdempotency({ sql, keys, audit, onFault, clock = systemClock }: IdempotencyOptions): Idempotency {
  const primitives = nodeVaultPrimitives();
  const placeOf = (claim: ReplyPlace): VaultPlace => replyPlace(keys.deploymentId, claim);

  /** The claim, held from now on; or the row of whoever has, or had, it. */
  async function take(tx: SqlTransaction, claim: Claim): Promise<Row | null> {
    const { userId, operation, keyHash, fingerprint, claimId } = claim;
    const nowMs = clock.nowMs();
    const times = [nowMs + LEASE_MS, nowMs + KEPT_MS];
    const inserted = await tx.query(
      `INSERT INTO keyguard.idempotency_keys (id, user_id, operation, key_hash, fingerprint, claim_id, state, lease_expires_at_ms, expires_at_ms)
        VALUES ($1, $2, $3, $4, $5, $6, 'in_flight', $7, $8) ON CONFLICT (user_id, operation, key_hash) DO NOTHING RETURNING 1`,
      [randomUUID(), userId, operation, keyHash, fingerprint, claimId, ...times],
    );
    if (inserted.rows.length === 1) return null;
    // Free again: too old, or held by a request that did not come to its end.
    const taken = await tx.query(
      `UPDATE keyguard.idempotency_keys SET fingerprint = $4, claim_id = $5, state = 'in_flight', lease_expires_at_ms = $6, expires_at_ms = $7,
          ciphertext = NULL, wrapped_dek = NULL, kek_id = NULL
        WHERE user_id = $1 AND operation = $2 AND key_hash = $3
          AND (expires_at_ms <= $8 OR (state = 'in_flight' AND lease_expires_at_ms <= $8)) RETURNING 1`,
      [userId, operation, keyHash, fingerprint, claimId, ...times, nowMs],
    );
    if (taken.rows.length === 1) return null;
    const { rows } = await tx.query<Row>(
      `SELECT id, fingerprint, claim_id, state, lease_expires_at_ms, expires_at_ms, ciphertext, wrapped_dek, kek_id
        FROM keyguard.idempotency_keys WHERE user_id = $1 AND operation = $2 AND key_hash = $3`,
      [userId, operation, keyHash],
    );
    return rows[0] ?? RELEASED;
  }

  async function claimOrAnswer(claim: Claim): Promise<KeptAnswer | null> {
    let row: Row | null = RELEASED;
    // Between two statements its holder may have let it go.
    for (let tries = 0; row === RELEASED && tries < TRIES; tries += 1) row = await asUser(sql, claim.userId, (tx) => take(tx, claim));
    if (row === null) return null;
    if (row === RELEASED) throw inFlight();
    if (row.fingerprint !== claim.fingerprint) {
      throw new HttpProblem('idempotency_key_reused', 'This Idempotency-Key was used with another request: take a new one.');
    }
    if (row.state === 'answered') return openReply(row, claim);
    if (row.state === 'in_flight' || Number(row.lease_expires_at_ms) > clock.nowMs()) throw inFlight();
    throw replyLost();
  }

  async function openReply(row: Row, claim: Claim): Promise<KeptAnswer> {
    const sealed = { ciphertext: Uint8Array.from(row.ciphertext!), wrappedDek: Uint8Array.from(row.wrapped_dek!), kekId: row.kek_id! };
    try {
      const bytes = await open(sealed, placeOf({ ...claim, claimId: row.claim_id }), { keyProvider: keys.kek, primitives });
      return JSON.parse(fromUtf8(bytes)) as KeptAnswer;
    } catch (error) {
      // It was carried out, so doing it again is out of the question.
      onFault(error);
      throw replyLost();
    }
  }

  /** In the transaction of the creation. @throws HttpProblem where another copy has taken over, so that this one comes to nothing */
  async function carriedOut(tx: SqlTransaction, { userId, claimId }: Claim): Promise<void> {
    const { rows } = await asUser(tx, userId, (inner) =>
      inner.query(
        `UPDATE keyguard.idempotency_keys SET state = 'carried_out' WHERE claim_id = $1 AND state IN ('in_flight', 'carried_out') RETURNING 1`,
        [claimId],
      ),
    );
    if (rows.length === 0) throw inFlight();
  }

  /** That what is shown once is shown again to none but who lost it on the way: soon, by the same credential, and while it is good. */
  async function demandShowable({ shown, json = {} }: KeptAnswer, { shownOnce, principal }: IdempotentRequest): Promise<void> {
    const values = json as Readonly<Record<string, unknown>>;
    if (shownOnce === undefined || values[shownOnce.member] === undefined) return;
    const nowMs = clock.nowMs();
    const isSoon = shown !== undefined && shown.to === credentialOf(principal) && shown.atMs <= nowMs && nowMs < shown.atMs + SHOWN_AGAIN_MS;
    if (!isSoon || !(await shownOnce.isGood(principal, values))) throw replyWithheld();
  }

  async function keep(claim: Claim, { status, json, headers, etag }: Answer, shown: Shown): Promise<void> {
    const reply = { shown, ...(status !== undefined && { status }), ...(json !== undefined && { json }), ...(headers !== undefined && { headers }), ...(etag !== undefined && { etag }) };
    const sealed = await seal(utf8(JSON.stringify(reply)), placeOf(claim), { keyProvider: keys.kek, primitives });
    await asUser(sql, claim.userId, (tx) =>
      tx.query(
        `UPDATE keyguard.idempotency_keys SET state = 'answered', ciphertext = $2, wrapped_dek = $3, kek_id = $4
          WHERE claim_id = $1 AND state IN ('in_flight', 'carried_out')`,
        [claim.claimId, sealed.ciphertext, sealed.wrappedDek, sealed.kekId],
      ),
    );
  }

  /** Nothing was done, so the next one may try. What was carried out all the same stays as it is. */
  async function release({ userId, claimId }: Claim): Promise<void> {
    await asUser(sql, userId, (tx) => tx.query(`DELETE FROM keyguard.idempotency_keys WHERE claim_id = $1 AND state = 'in_flight'`, [claimId]));
  }

  return {
    async once(request, work) {
      const { key, operation, principal, input } = request;
      const claim: Claim = {
        userId: principal.userId,
        operation: operation.id,
        keyHash: keys.hashToken(`idempotency-key\0${key}`),
        // Keyed, because a body may hold a value that could be guessed.
        fingerprint: keys.hashToken(`idempotent-input\0${canonicalJson(input)}`),
        claimId: randomUUID(),
      };
      const before = await claimOrAnswer(claim);
      if (before !== null) {
        await demandShowable(before, request);
        // It may show a value once more, so it is written down before it leaves.
        await audit.record({ action: 'idempotency.replay', outcome: 'success', actor: principal.actor, operation: operation.action });
        const { shown: _, ...reply } = before;
        return { ...reply, headers: { ...reply.headers, 'idempotency-replayed': 'true' } };
      }
      let isCarriedOut = false;
      let answer: Answer;
      try {
        answer = await beforeEntry(async (tx) => {
          await carriedOut(tx, claim);
          isCarriedOut = true;
        }, work);
      } catch (error) {
        await release(claim).catch(onFault);
        throw error;
      }
      if (!isCarriedOut) onFault(new Error(`${operation.id} takes an Idempotency-Key, and records nothing in its transaction.`));
      // Whoever loses this answer and asks again is told that it is lost; the creation is not done twice.
      await keep(claim, answer, { to: credentialOf(principal), atMs: clock.nowMs() }).catch(onFault);
      return answer;
    },

    async purge() {
      await asJobs(sql, (tx) =>
        tx.query(
          `DELETE FROM keyguard.idempotency_keys WHERE id IN
            (SELECT id FROM keyguard.idempotency_keys WHERE expires_at_ms <= $1 ORDER BY expires_at_ms LIMIT $2)`,
          [clock.nowMs(), PURGED_AT_ONCE],
        ),
      );
    },

    async releaseAll() {
      await asJobs(sql, (tx) => tx.query(`UPDATE keyguard.idempotency_keys SET lease_expires_at_ms = 0 WHERE state <> 'answered'`));
    },
  };
}

/** Stands for a row that was there a moment ago. */
const RELEASED: Row = { id: '', fingerprint: '', claim_id: '', state: 'in_flight', lease_expires_at_ms: 0, expires_at_ms: 0, ciphertext: null, wrapped_dek: null, kek_id: null };

function inFlight(): HttpProblem {
  return new HttpProblem('idempotency_in_flight', 'Another request with this Idempotency-Key is being carried out: ask again in a moment.', { retryAfterSeconds: 1 });
}

function replyWithheld(): HttpProblem {
  return new HttpProblem(
    'idempotency_reply_withheld',
    'This was carried out, and its answer shows a value that is shown once: again only for ten minutes, to the session or token that asked, and while it is good. To make another one, take a new key.',
  );
}

function replyLost(): HttpProblem {
  return new HttpProblem(
    'idempotency_reply_lost',
    'This was carried out, and its answer was lost before it could be kept. Look in the list for what it made; to make another one, take a new key.',
  );
}
