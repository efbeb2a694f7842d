/**
 * The audit log in PostgreSQL: one chain per origin, continued under a lock on its head.
 *
 * Callers that arrive while a batch is being written, or while other processes have their turn, share the next one: one
 * transaction, one insert, one commit for all of them. Processes take turns in the order in which they ask; a process that wrote the
 * last record itself needs no turn, and one statement. The database refuses records that do not continue the chain, and any change to
 * those that are there.
 */
import { chainAfter, checkEntry, continueChain, type ChainKeys, type ChainPosition } from '@keyguard/core/audit';
import { fromUtf8 } from '@keyguard/core/bytes';
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import type { AuditEntry, AuditRecord, AuditSink, Clock, JsonValue } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import { setImmediate } from 'node:timers/promises';
import { integerArray, textArray } from './array-literal.ts';
import { asRole, bytesOf, guarded, integer, isClient, type Sql, type SqlClient, type SqlTransaction } from './client.ts';

const SEAM = 'audit_sink';
// A page is read and parsed in one go, and calls wait meanwhile: so it takes a few milliseconds and not a few dozen.
const READ_PAGE = 250;
// Of a reader whose work is all done at once: after so many records whoever waits for this thread has a turn.
const RECORDS_A_TURN = 32;
// Copies that are too long for an index would refuse the whole record.
const MAX_COLUMN_CHARACTERS = 256;

/**
 * To change the MAC key without an interruption: first let all processes have the new one as `nextMacKey`, then let them have it
 * as `macKey` and the old one in `previousMacKeys`. The first of them that appends then goes over to it, and all others follow.
 */
export interface PostgresAuditSinkOptions extends ChainKeys {
  /** Names the chain; goes into every record. */
  readonly origin: string;
  readonly clock?: Clock;
  /** How many entries one transaction takes at most. Default 512. */
  readonly maxBatchEntries?: number;
  /** How many entries may wait for a transaction before more are refused with `overloaded`. Default 20,000. */
  readonly maxWaitingEntries?: number;
  /** After how long a statement of `append` is given up, the wait for the head included. Default 5,000 ms. */
  readonly statementTimeoutMs?: number;
}

interface Waiting {
  readonly entries: readonly AuditEntry[];
  resolve(records: readonly AuditRecord[]): void;
  reject(error: unknown): void;
}

interface HeadRow {
  seq: unknown;
  mac: unknown;
  mac_key_id: string | null;
}

interface RecordRow {
  seq: unknown;
  entry: unknown;
  prev_mac: unknown;
  mac: unknown;
  mac_key_id: string;
  handover_mac: unknown;
  handover_mac_key_id: string | null;
}

const COLUMNS = 'seq, entry, prev_mac, mac, mac_key_id, handover_mac, handover_mac_key_id';
// After so many misses in a row one write in 64 is tried without a turn.
const MAX_MISSES = 6;

/** What {@link checkEntry} throws. Asked only where sealing failed: to write each entry twice would be a tenth of an append. */
function formFault(entries: readonly AuditEntry[]): unknown {
  try {
    for (const entry of entries) checkEntry(entry);
    return null;
  } catch (error) {
    return error;
  }
}

/** Records that are not stored yet, and the columns of all of them as the database takes them. */
interface Sealed {
  /** Those of the entries that were given. */
  readonly records: readonly AuditRecord[];
  readonly columns: readonly unknown[];
}

const placeholders = (count: number): string => Array.from({ length: count }, (_, i) => `$${1 + i}`).join(', ');
const ADD = `SELECT keyguard.add_audit_records(${placeholders(17)})`;
const ADD_AFTER = `SELECT keyguard.add_audit_records_after(${placeholders(20)}) AS added`;
const base64 = (bytes: Uint8Array): string => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64');

function column(value: JsonValue | undefined): string | null {
  // PostgreSQL knows no NUL in a text, and a refused copy must not cost the record.
  return typeof value === 'string' ? value.slice(0, MAX_COLUMN_CHARACTERS).replaceAll('\0', '\uFFFD') : null;
}

function handoverColumns({ seq, handover }: AuditRecord): [number | null, string | null, string | null] {
  return handover === undefined ? [null, null, null] : [seq, base64(handover.mac), handover.macKeyId];
}

function auditRecord(row: RecordRow): AuditRecord {
  const record = {
    seq: integer(row.seq),
    bytes: bytesOf(row.entry),
    prevMac: bytesOf(row.prev_mac),
    mac: bytesOf(row.mac),
    macKeyId: row.mac_key_id,
  };
  if (row.handover_mac_key_id === null) return record;
  return { ...record, handover: { macKeyId: row.handover_mac_key_id, mac: bytesOf(row.handover_mac) } };
}

/**
 * An {@link AuditSink} that any number of processes share.
 *
 * `append` writes as `kg_verifier`, which may insert records and not read them, in transactions of its own; in a sink made for a
 * transaction that is handed in there is no such thing, and it throws: use `appendIn`. Where the connection is lost during the
 * COMMIT, nobody can know whether the entries are there: it throws, and they may be. `appendIn` writes as whatever role the
 * transaction has and takes the head's lock: call it last, or two transactions may wait for each other.
 * `head` and `read` work as `kg_jobs`.
 * @throws UsageError `invalid_option`
 */
export function postgresAuditSink(sql: Sql, options: PostgresAuditSinkOptions): AuditSink<SqlTransaction> {
  const { origin, clock = systemClock, maxBatchEntries = 512, maxWaitingEntries = 20_000, statementTimeoutMs = 5000 } = options;
  for (const [name, value] of Object.entries({ maxBatchEntries, maxWaitingEntries, statementTimeoutMs })) {
    if (!Number.isSafeInteger(value) || value < 1) throw new UsageError('invalid_option', `${name} must be a positive integer.`);
  }
  const waiting: Waiting[] = [];
  let waitingEntries = 0;
  let isWriting = false;
  // What follows the last record that this process has added, where nothing was heard of another one since.
  let known: ChainPosition | null = null;
  let misses = 0;
  let turnsToTake = 0;

  /** Where the next record goes. Nobody else can append from then on until the transaction ends. */
  async function lockHead(tx: SqlTransaction): Promise<ChainPosition> {
    const { rows } = await tx.query<HeadRow>('SELECT seq, mac, mac_key_id FROM keyguard.lock_audit_head($1)', [origin]);
    const row = rows[0]!;
    return { seq: integer(row.seq) + 1, prevMac: bytesOf(row.mac), macKeyId: row.mac_key_id };
  }

  async function seal(head: ChainPosition, entries: readonly AuditEntry[]): Promise<Sealed> {
    const nowMs = clock.nowMs();
    const records = await continueChain({ ...options, head, nowMs, entries });
    // A change of the key, which no caller gave, is the first where there is one.
    const changes = records.length - entries.length;
    const copies = [...records.slice(0, changes).map(({ bytes }) => JSON.parse(fromUtf8(bytes)) as AuditEntry), ...entries];
    return {
      records: records.slice(changes),
      columns: [
        origin,
        nowMs,
        records[0]!.macKeyId,
        ...handoverColumns(records[0]!),
        integerArray(records.map((r) => r.seq)),
        textArray(copies.map((e) => column(e.actor))),
        textArray(copies.map((e) => column(e['device_id']))),
        textArray(copies.map((e) => column(e.action))),
        textArray(copies.map((e) => column(e['resource']))),
        textArray(copies.map((e) => column(e.outcome))),
        textArray(copies.map((e) => column(e['ip']))),
        textArray(copies.map((e) => column(e['request_id']))),
        textArray(records.map((r) => base64(r.bytes))),
        textArray(records.map((r) => base64(r.prevMac))),
        textArray(records.map((r) => base64(r.mac))),
      ],
    };
  }

  async function extend(tx: SqlTransaction, head: ChainPosition, entries: readonly AuditEntry[]): Promise<readonly AuditRecord[]> {
    const { records, columns } = await seal(head, entries);
    await tx.query(ADD, columns);
    return records;
  }

  /**
   * One statement, where this process wrote the last record and nobody else has the turn: the database adds what follows that record, or
   * answers that it is not the last any more, and has added nothing. So the head is as good as held.
   */
  async function extendKnown(client: SqlClient, head: ChainPosition, entries: readonly AuditEntry[]): Promise<readonly AuditRecord[] | null> {
    const { records, columns } = await seal(head, entries);
    const { rows } = await client.query<{ added: unknown }>(ADD_AFTER, [head.seq - 1, base64(head.prevMac), statementTimeoutMs, ...columns]);
    const added = rows[0]?.added;
    if (typeof added !== 'boolean') throw new UnavailableError(SEAM, 'The database did not say whether the records are there.');
    return added ? records : null;
  }

  /** The callers of one transaction, who then wait no more. */
  function takeBatch(): Waiting[] {
    const batch: Waiting[] = [];
    let size = 0;
    // One caller's entries are never split: they are there together or not at all.
    while (waiting.length > 0 && (size === 0 || size + waiting[0]!.entries.length <= maxBatchEntries)) {
      const next = waiting.shift()!;
      batch.push(next);
      size += next.entries.length;
    }
    waitingEntries -= size;
    return batch;
  }

  function answer(batch: readonly Waiting[], records: readonly AuditRecord[]): void {
    known = chainAfter(records.at(-1)!);
    let at = 0;
    for (const { entries, resolve } of batch) {
      resolve(records.slice(at, at + entries.length));
      at += entries.length;
    }
  }

  /** Back to where they came from: before all who came since. */
  function putBack(batch: readonly Waiting[]): void {
    waiting.unshift(...batch);
    waitingEntries += batch.reduce((sum, { entries }) => sum + entries.length, 0);
  }

  /** Tells the callers of a batch that it failed; but where one of them has brought an entry that has no form, that one alone. */
  function fail(batch: readonly Waiting[], error: unknown): void {
    const faults = batch.map(({ entries }) => formFault(entries));
    const isTheirs = faults.some((fault) => fault !== null);
    batch.forEach(({ reject }, i) => {
      if (!isTheirs) reject(error);
      else if (faults[i] !== null) reject(faults[i]);
    });
    if (isTheirs) putBack(batch.filter((_, i) => faults[i] === null));
  }

  /** Whether the batch was dealt with: added, or failed. */
  async function writeAfterKnown(client: SqlClient, head: ChainPosition): Promise<boolean> {
    const batch = takeBatch();
    known = null;
    try {
      const records = await guarded(SEAM, () => extendKnown(client, head, batch.flatMap(({ entries }) => entries)));
      if (records === null) {
        putBack(batch);
        return false;
      }
      answer(batch, records);
    } catch (error) {
      fail(batch, error);
    }
    return true;
  }

  async function write(client: SqlClient): Promise<void> {
    if (known !== null && turnsToTake === 0) {
      if (await writeAfterKnown(client, known)) {
        misses = 0;
        return;
      }
      // Others append too: each try that fails is a round trip for nothing.
      misses = Math.min(misses + 1, MAX_MISSES);
      turnsToTake = 2 ** misses;
    }
    turnsToTake = Math.max(0, turnsToTake - 1);
    await writeInTurn(client);
  }

  async function writeInTurn(client: SqlClient): Promise<void> {
    let batch: readonly Waiting[] = [];
    known = null;
    try {
      const records = await guarded(SEAM, () =>
        client.transaction(async (tx) => {
          // What asRole does and the timeout with it, in one round trip.
          await tx.query(
            `SELECT set_config('role', 'kg_verifier', true), set_config('app.user_id', '', true),
              set_config('statement_timeout', $1, true)`,
            [String(statementTimeoutMs)],
          );
          const head = await lockHead(tx);
          // Only now: whoever came while other processes had their turn is in this one, so batches grow where turns are rare.
          batch = takeBatch();
          return extend(tx, head, batch.flatMap(({ entries }) => entries));
        }),
      );
      answer(batch, records);
    } catch (error) {
      // Without a turn there was no batch: those who would have been in it are told, and do not wait for another timeout.
      fail(batch.length > 0 ? batch : takeBatch(), error);
    }
  }

  async function writeAll(client: SqlClient): Promise<void> {
    isWriting = true;
    for (;;) {
      // One turn of the event loop: whoever was answered by the last batch, or is awake already, comes into this one. Without it
      // every other batch has one entry where the database is in this process.
      await setImmediate();
      if (waiting.length === 0) break;
      await write(client);
    }
    isWriting = false;
  }

  async function append(entries: readonly AuditEntry[]): Promise<readonly AuditRecord[]> {
    if (!isClient(sql)) throw new UsageError('invalid_option', 'Inside a transaction append with appendIn.');
    if (entries.length === 0) return [];
    if (waitingEntries + entries.length > maxWaitingEntries) {
      throw new UnavailableError(SEAM, 'Too many audit entries are waiting.', { code: 'overloaded' });
    }
    waitingEntries += entries.length;
    return new Promise((resolve, reject) => {
      waiting.push({ entries, resolve, reject });
      if (!isWriting) void writeAll(sql);
    });
  }

  async function head(): Promise<AuditRecord | null> {
    const { rows } = await asRole(sql, 'kg_jobs', (tx) =>
      tx.query<RecordRow>(`SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE origin = $1 ORDER BY seq DESC LIMIT 1`, [origin]),
    );
    return rows[0] === undefined ? null : auditRecord(rows[0]);
  }

  async function* read(fromSeq: number): AsyncGenerator<AuditRecord> {
    let next = fromSeq;
    for (;;) {
      const page = await guarded(SEAM, async () => {
        const { rows } = await asRole(sql, 'kg_jobs', (tx) =>
          tx.query<RecordRow>(
            `SELECT ${COLUMNS} FROM keyguard.secret_audit_logs WHERE origin = $1 AND seq >= $2 ORDER BY seq LIMIT ${READ_PAGE}`,
            [origin, next],
          ),
        );
        return rows.map(auditRecord);
      });
      for (const [i, record] of page.entries()) {
        yield record;
        if (i % RECORDS_A_TURN === RECORDS_A_TURN - 1) await setImmediate();
      }
      if (page.length < READ_PAGE) return;
      next = page.at(-1)!.seq + 1;
    }
  }

  return {
    append,
    appendIn: (tx, entries): Promise<readonly AuditRecord[]> =>
      guarded(SEAM, async () => (entries.length === 0 ? [] : extend(tx, await lockHead(tx), entries))),
    head: (): Promise<AuditRecord | null> => guarded(SEAM, head),
    read,
  };
}
