/** What the operations of sign-in share, put together once. */
import type { Clock } from '@keyguard/core/seams';
import type { Administrators, SqlClient } from '@keyguard/storage-node/postgres';
import type { AuditLog } from '../audit/log.ts';
import type { DeploymentKeys } from '../keys/hierarchy.ts';
import type { Quotas } from '../settings/quotas.ts';
import { createAttempts, type Attempts } from './attempts.ts';
import { createCredentials, type Credentials } from './credentials.ts';
import { createInvitations, type Invitations } from './invitations.ts';
import { createKnownBrowsers, type KnownBrowsers } from './known-browser.ts';
import { createPasswordResets, type PasswordResets } from './password-resets.ts';
import { lackOf, type CurrentSignInPolicy } from './policy.ts';
import { createSecondFactors, type SecondFactors } from './second-factor.ts';
import { createSessions, type Sessions } from './sessions.ts';
import { createStandings, type Standings } from './standing.ts';
import { createTryLimit, type TryLimit } from './try-limit.ts';
import type { Vouching } from './vouched-people.ts';

export interface People {
  readonly attempts: Attempts;
  readonly limit: TryLimit;
  readonly credentials: Credentials;
  readonly knownBrowsers: KnownBrowsers;
  readonly standings: Standings;
  readonly factors: SecondFactors;
  readonly sessions: Sessions;
  readonly invitations: Invitations;
  readonly passwordResets: PasswordResets;
  /** Deletes what counts no longer. */
  readonly purge: () => Promise<void>;
  /** What a session of this person's lacks that has just begun. */
  readonly lackOf: (userId: string) => Promise<'none' | 'required' | 'setup_required'>;
}

export interface PeopleOptions {
  readonly sql: SqlClient;
  readonly vouching: Vouching;
  readonly keys: DeploymentKeys;
  readonly audit: AuditLog;
  readonly administrators: Administrators;
  readonly policy: CurrentSignInPolicy;
  readonly quotas: Quotas;
  /** Whether people reach the service by https. */
  readonly isSecure: boolean;
  readonly clock?: Clock;
}

export function createPeople({ sql, vouching, keys, audit, administrators, policy, quotas, isSecure, ...rest }: PeopleOptions): People {
  const attempts = createAttempts({ sql, hash: keys.hashToken, ...rest });
  const limit = createTryLimit({ attempts, audit, pseudonym: keys.pseudonym, ...rest });
  const standings = createStandings({ sql, vouching, policy, ...rest });
  const factors = createSecondFactors({ sql, keys, audit, limit, standings, ...rest });
  const sessions = createSessions({ sql, audit, policy });
  return {
    attempts,
    limit,
    sessions,
    invitations: createInvitations({ sql, keys, audit, quotas, ...rest }),
    passwordResets: createPasswordResets({ sql, keys, audit, attempts, ...rest }),
    async purge() {
      await attempts.purge();
      await sessions.purge();
    },
    standings,
    factors,
    credentials: createCredentials({ sql, vouching, audit, limit }),
    knownBrowsers: createKnownBrowsers({ hash: keys.hashToken, isSecure }),
    async lackOf(userId) {
      const { isSetUp } = await factors.stateOf(userId);
      if (isSetUp) return 'required';
      const isAdministrator = await administrators.has(userId);
      return lackOf({ isAdministrator, secondFactor: { isSetUp, provenAtMs: null } }, policy()) === null ? 'none' : 'setup_required';
    },
  };
}
