/**
 * Which refusals are written down: of one kind to one caller all of them up to a number each minute, and beyond that each n-th, which
 * says for how many it stands. So a flood leaves its trace and its size, and does not bury the rest of the log.
 */
import type { AuditEntry, Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';

const MINUTE_MS = 60_000;
const MAX_KINDS = 10_000;

export interface RefusalSampling {
  /** 1 or more. */
  readonly perMinute: number;
  /** 1 for all. */
  readonly thenOneIn: number;
}

/** The entry as it shall be written, or `null` for one that the next one will stand for. `kind` names the refusal and whom it met. */
export type RefusalSampler = (kind: string, entry: AuditEntry) => AuditEntry | null;

/** `sampling` is asked for each refusal; where it throws, the refusal is written. */
export function refusalSampler(sampling: () => RefusalSampling, clock: Clock = systemClock): RefusalSampler {
  const kinds = new Map<string, { minute: number; count: number; unwritten: number }>();
  return (kind, entry) => {
    const minute = Math.floor(clock.nowMs() / MINUTE_MS);
    let seen = kinds.get(kind);
    if (seen === undefined) {
      if (kinds.size >= MAX_KINDS) kinds.delete(kinds.keys().next().value!);
      seen = { minute, count: 0, unwritten: 0 };
      kinds.set(kind, seen);
    }
    if (seen.minute !== minute) [seen.minute, seen.count] = [minute, 0];
    seen.count += 1;
    seen.unwritten += 1;
    if (!isWritten(seen.count, sampling)) return null;
    const standsFor = seen.unwritten;
    seen.unwritten = 0;
    return standsFor === 1 ? entry : { ...entry, stands_for: standsFor };
  };
}

function isWritten(count: number, sampling: () => RefusalSampling): boolean {
  try {
    const { perMinute, thenOneIn } = sampling();
    return count <= perMinute || (count - perMinute) % thenOneIn === 0;
  } catch {
    return true;
  }
}
