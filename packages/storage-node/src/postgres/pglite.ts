/**
 * A client on PGlite, which does one thing at a time; or two of them, of which one goes first. Nothing here starves: neither the
 * second of them, nor the event loop.
 */
import { setImmediate } from 'node:timers/promises';
import { handle, rolledBack, type SqlResult, type SqlScriptClient, type SqlScriptTransaction } from './client.ts';

/** The part of PGlite's transaction that is used. */
export interface PgliteTransaction {
  /** As `Transaction.query` of PGlite. */
  query(text: string, params?: unknown[]): Promise<{ rows: unknown[] }>;
  /** As `Transaction.exec` of PGlite. */
  exec(text: string): Promise<unknown>;
}

/** The part of PGlite that is used. */
export interface PgliteDatabase {
  /** As `PGlite.query`. */
  query(text: string, params?: unknown[]): Promise<{ rows: unknown[] }>;
  /** As `PGlite.transaction`. */
  transaction<T>(fn: (tx: PgliteTransaction) => Promise<T>): Promise<T>;
}

// So many of the first lane may pass whoever waits in the second, before it is their turn.
const MOST_AHEAD = 32;

type InLane = <T>(work: () => Promise<T>) => Promise<T>;

/** One at a time; whoever waits in the first lane goes before those in the second. */
function twoLanes(): readonly [first: InLane, second: InLane] {
  const waiting: readonly [first: (() => void)[], second: (() => void)[]] = [[], []];
  let isBusy = false;
  let passed = 0;

  function next(): (() => void) | undefined {
    const [first, second] = waiting;
    const isFirst = first.length > 0 && (second.length === 0 || passed < MOST_AHEAD);
    passed = isFirst && second.length > 0 ? passed + 1 : 0;
    return (isFirst ? first : second).shift();
  }

  const lane = (line: (() => void)[]): InLane => async (work) => {
    // Whoever ends hands its turn over, so it stays taken.
    if (isBusy) await new Promise<void>((resolve) => line.push(resolve));
    isBusy = true;
    try {
      return await work();
    } finally {
      const go = next();
      if (go === undefined) isBusy = false;
      else go();
    }
  };
  return [lane(waiting[0]), lane(waiting[1])];
}

// PGlite answers without the event loop: whoever asks again and again would have it alone, and no socket be read meanwhile.
const MOST_WITHOUT_A_TURN_MS = 4;

/** Lets the event loop have a turn where it has had none for some milliseconds. */
function loopTurns(): () => Promise<void> {
  let next: Promise<void> | null = null;
  let sinceMs = 0;
  return async () => {
    if (next === null) {
      sinceMs = performance.now();
      next = setImmediate().then(() => {
        next = null;
      });
    }
    if (performance.now() - sinceMs > MOST_WITHOUT_A_TURN_MS) await next;
  };
}

function pgliteLane(db: PgliteDatabase, inLane: InLane, turn: () => Promise<void>): SqlScriptClient {
  async function scripted<T>(fn: (tx: SqlScriptTransaction) => Promise<T>): Promise<T> {
    return inLane(() => db.transaction(async (inner) => {
      const tx = handle(
        async (text, params) => {
          await turn();
          return inner.query(text, params);
        },
        (text) => inner.exec(text),
      );
      try {
        const result = await fn(tx);
        if (tx.hasFailed()) throw rolledBack();
        return result;
      } finally {
        tx.end();
      }
    }));
  }
  return {
    query: async <Row>(text: string, params: readonly unknown[] = []): Promise<SqlResult<Row>> =>
      (await inLane(async () => {
        await turn();
        return db.query(text, [...params]);
      })) as SqlResult<Row>,
    transaction: scripted,
    scripted,
  };
}

/** Two clients on one database. */
export interface PgliteLanes {
  /** For what somebody waits for at every call: it goes before all that waits in `rest`, though not before what has begun. */
  readonly first: SqlScriptClient;
  /** For everything else. At least each thirty-third turn is its own, however much comes in `first`. */
  readonly rest: SqlScriptClient;
}

/**
 * Two clients on a PGlite database, which does one thing at a time: what must be short goes before what may wait. MUST be the only
 * clients on `db`, and a transaction MUST use its `tx` alone.
 * @see pgliteClient for what else holds
 */
export function pgliteLanes(db: PgliteDatabase): PgliteLanes {
  const [first, second] = twoLanes();
  const turn = loopTurns();
  return { first: pgliteLane(db, first, turn), rest: pgliteLane(db, second, turn) };
}

/**
 * A client on a PGlite database. Everything in the process waits in one queue: inside a transaction use its `tx` alone.
 * PGlite logs in as a superuser, whom no policy binds: only what takes a role (`asRole`) is bound by them.
 */
export function pgliteClient(db: PgliteDatabase): SqlScriptClient {
  return pgliteLane(db, (work) => work(), loopTurns());
}

const BYTEA = 17;

/**
 * For PGlite's option `parsers`: reads `bytea` as its own parser does, into the same bytes, and many times faster. PGlite reads each byte
 * by itself, which was a quarter of all that a busy service did.
 */
export const pgliteParsers: Readonly<Record<number, (text: string) => unknown>> = Object.freeze({
  [BYTEA]: (hex: string): Uint8Array => Buffer.from(hex.slice(2), 'hex'),
});
