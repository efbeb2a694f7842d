/** What `attempts.ts` counts, as refusals: who has to wait is told for how long, and a lock is written into the audit log. */
import type { AuditEntry, Clock } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { Sql } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import { HttpProblem } from '../http/problems.ts';
import type { Attempts, Counter } from './attempts.ts';

export interface ClaimedTry {
  /** For a try that was never judged, because something failed before. */
  giveBack(): Promise<void>;
}

export interface TryLimit {
  /** Counts a try, before it is judged. @throws HttpProblem `rate_limited` where there were too many */
  claim(counter: Counter): Promise<ClaimedTry>;
  /** Forgets what was counted, in the caller's transaction where one is handed. */
  succeeded(counter: Counter, sql?: Sql): Promise<void>;
}

export interface TryLimitOptions {
  readonly attempts: Attempts;
  readonly audit: AuditLog;
  /** As the audit log names whoever is counted. */
  readonly pseudonym: (text: string) => string;
  readonly clock?: Clock;
}

export function createTryLimit({ attempts, audit, pseudonym, clock = systemClock }: TryLimitOptions): TryLimit {
  return {
    async claim(counter) {
      const claim = await attempts.claim(counter);
      const { isAllowed, hasLocked, lockedUntilMs } = claim;
      if (hasLocked) await audit.record(lockEntry(counter));
      if (isAllowed) return { giveBack: () => attempts.giveBack(counter, claim) };
      const seconds = Math.max(1, Math.ceil((lockedUntilMs - clock.nowMs()) / 1000));
      throw new HttpProblem('rate_limited', 'Too many tries in vain: wait, or ask an administrator to unlock this account.', { retryAfterSeconds: seconds });
    },
    succeeded: (counter, sql) => attempts.succeeded(counter, sql),
  };

  // Once per lock, and locks become longer: this cannot fill the log.
  function lockEntry({ account, of }: Counter): AuditEntry {
    return { action: 'auth.lock', outcome: 'success', actor: 'unknown', account: pseudonym(account), tries_of: of.split('\0')[0]! };
  }
}
