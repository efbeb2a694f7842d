/** Tries values at their providers: before they are put into use, and when somebody asks. */
import type { RateLimiter } from '@keyguard/core/seams';
import type { Principal } from '../auth/principal.ts';
import { HttpProblem } from '../http/problems.ts';
import { probe, type ProbeCode, type ProbeOutcome } from '../llm/probe.ts';
import type { StoredApiKey } from './rows.ts';
import { providerNamed, type KeyUpstreams } from './upstreams.ts';

export interface Probing {
  /**
   * MUST NOT be called in a transaction.
   * @throws HttpProblem `rate_limited`; `upstream_not_allowed` where the key may be sent nowhere
   */
  ask(principal: Principal, key: Pick<StoredApiKey, 'provider' | 'baseUrl' | 'options'>, value: string): Promise<ProbeOutcome>;
  /** Likewise. @throws HttpProblem `verification_failed` as well, where the provider did not take the value */
  demand(principal: Principal, key: Pick<StoredApiKey, 'provider' | 'baseUrl' | 'options'>, value: string): Promise<void>;
}

const WHY: Readonly<Record<Exclude<ProbeCode, 'accepted'>, string>> = {
  key_refused: 'it refused the value, or the value may not list models',
  rate_limited: 'it said that too much was asked of it',
  redirected: 'it answered with a redirect, which is never followed',
  upstream_error: 'it failed',
  unexpected_status: 'it answered with a status that means nothing here: is the address its own?',
  unreachable: 'it could not be reached',
  timed_out: 'it did not answer in time',
};

export function createProbing({ upstreams, limiter }: { readonly upstreams: KeyUpstreams; readonly limiter: RateLimiter }): Probing {
  const ask: Probing['ask'] = async (principal, key, value) => {
    const upstream = upstreams.of(key);
    if (upstream === null) {
      throw new HttpProblem('upstream_not_allowed', key.baseUrl === null ? 'Nothing says where keys of this provider go: the operator must set its base URL.' : 'The operator does not allow the address of this key any more.');
    }
    const tries = await limiter.consume(principal.userId, 1);
    if (!tries.allowed) {
      throw new HttpProblem('rate_limited', 'Too many keys were tried at their providers: wait a moment.', { retryAfterSeconds: Math.max(1, Math.ceil((tries.resetAtMs - Date.now()) / 1000)) });
    }
    return probe(providerNamed(key.provider), { upstream, apiKey: value, options: key.options });
  };
  return {
    ask,
    async demand(principal, key, value) {
      const { ok, code, status } = await ask(principal, key, value);
      if (ok || code === 'accepted') return;
      throw new HttpProblem('verification_failed', `The provider was asked before the value was put into use, and ${WHY[code]}${status === null ? '' : ` (${status})`}: nothing was changed.`);
    },
  };
}
