/**
 * Bounds what people whom nobody knows can make the audit log write. Each kind of refusal to each address is written so often a
 * minute, and all of them together so often; what is beyond is counted, and at the end of the minute an entry says how many more there
 * were. So the log grows by a bounded number of entries a minute, whatever is thrown at it, and no refusal is left out of the count. While
 * the log takes no entries, those that wait are bounded too: later counts are told by code alone.
 */
import type { AuditEntry, Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';

const MINUTE_MS = 60_000;
/** So many minutes' entries wait for a log that takes none. */
const MINUTES_WAITING = 10;

export interface StrangersOptions {
  /** Appends an entry that belongs to no request. */
  readonly record: (entry: AuditEntry) => Promise<void>;
  readonly clock?: Clock;
  /** Of one kind, to one address. Default 30. */
  readonly perMinutePerKind?: number;
  /** Of all kinds to all addresses. Default 600. */
  readonly perMinute?: number;
  /** How many kinds have an entry of their own at the end of a minute; the rest shares one for each code. Default 100. */
  readonly summaries?: number;
}

export interface Strangers {
  /** Whether this refusal is to be written now. `kind` names it and the address. */
  admit(kind: string, entry: AuditEntry, ip: string | null): boolean;
  /** Counts a refusal that is not worth an entry of its own. */
  count(kind: string, entry: Readonly<Record<string, unknown>>, ip: string | null): void;
  /** To be called every few seconds, and with `true` before the end: writes down what was counted in minutes that are over. */
  flush(isEnd?: boolean): Promise<void>;
}

interface Counted {
  readonly code: string;
  readonly ip: string | null;
  seen: number;
  unwritten: number;
}

export function strangers({ record, clock = systemClock, perMinutePerKind = 30, perMinute = 600, summaries = 100 }: StrangersOptions): Strangers {
  // Not more than these are told apart in one minute; all others are one crowd.
  const maxKinds = Math.max(perMinute, summaries) * 2;
  let minute = 0;
  let written = 0;
  let kinds = new Map<string, Counted>();
  let crowd = new Map<string, number>();
  const maxDue = summaries * MINUTES_WAITING;
  let due: AuditEntry[] = [];
  /** What no entry could wait for any more, by code. */
  let late = new Map<string, number>();

  function summary(code: string, ip: string | null, count: number): AuditEntry {
    return { action: 'request.refused_more', outcome: 'refused', actor: 'unknown', code, ...(ip !== null && { ip }), stands_for: count, minute: new Date(minute * MINUTE_MS).toISOString() };
  }

  function closeMinute(): void {
    let own = 0;
    for (const { code, ip, unwritten } of kinds.values()) {
      if (unwritten === 0) continue;
      if (own < summaries && due.length < maxDue) due.push(summary(code, ip, unwritten));
      else crowd.set(code, (crowd.get(code) ?? 0) + unwritten);
      own += 1;
    }
    for (const [code, count] of crowd) {
      if (due.length < maxDue) due.push(summary(code, null, count));
      else late.set(code, (late.get(code) ?? 0) + count);
    }
    [kinds, crowd, written] = [new Map(), new Map(), 0];
  }

  function turn(): void {
    const now = Math.floor(clock.nowMs() / MINUTE_MS);
    if (now === minute) return;
    closeMinute();
    minute = now;
  }

  /** Whether it is among those that may be written. */
  function note(kind: string, code: unknown, ip: string | null, mayBeWritten: boolean): boolean {
    turn();
    const name = typeof code === 'string' ? code : 'unknown';
    let counted = kinds.get(kind);
    if (counted === undefined && kinds.size < maxKinds) {
      counted = { code: name, ip, seen: 0, unwritten: 0 };
      kinds.set(kind, counted);
    }
    if (counted === undefined) {
      crowd.set(name, (crowd.get(name) ?? 0) + 1);
      return false;
    }
    counted.seen += 1;
    if (mayBeWritten && counted.seen <= perMinutePerKind && written < perMinute) {
      written += 1;
      return true;
    }
    counted.unwritten += 1;
    return false;
  }

  return {
    admit: (kind, { code }, ip) => note(kind, code, ip, true),
    count(kind, entry, ip) {
      note(kind, entry['code'], ip, false);
    },

    async flush(isEnd = false) {
      if (isEnd) closeMinute();
      else turn();
      for (;;) {
        if (due.length === 0) {
          due = [...late].map(([code, count]) => summary(code, null, count));
          late = new Map();
        }
        if (due.length === 0) return;
        await record(due[0]!);
        due = due.slice(1);
      }
    },
  };
}
