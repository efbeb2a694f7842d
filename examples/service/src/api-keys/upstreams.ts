/** Where the keys of this deployment may be sent: by the operator's configuration, and by nothing else. */
import { UsageError } from '@keyguard/core/errors';
import { HttpProblem } from '../http/problems.ts';
import { trustedUpstream, type Provider, type TrustedUpstream } from '../llm/provider.ts';
import { PROVIDERS } from '../llm/providers.ts';
import type { StoredApiKey } from './rows.ts';

export interface KeyUpstreams {
  /**
   * `baseUrl` (untrusted) in the one form that is stored.
   * @throws HttpProblem `upstream_not_allowed`
   */
  examine(provider: string, baseUrl: string): string;
  /** Where this key goes now; `null` where it may go nowhere: its origin is not allowed any more, or its provider has no address. */
  of(key: Pick<StoredApiKey, 'provider' | 'baseUrl'>): TrustedUpstream | null;
}

export interface KeyUpstreamsOptions {
  /** By the provider's name: where keys go that name no address of their own. */
  readonly configured: ReadonlyMap<string, TrustedUpstream>;
  /** Exact origins to which keys with an address of their own may go. */
  readonly allowedOrigins: ReadonlySet<string>;
}

export function providerNamed(name: string): Provider {
  const provider = PROVIDERS.find((one) => one.name === name);
  // The schema lets no other one in.
  if (provider === undefined) throw new UsageError('invalid_option', 'There is no such provider.');
  return provider;
}

const originOf = ({ secure, authority }: TrustedUpstream): string => `${secure ? 'https' : 'http'}://${authority}`;

export function keyUpstreams({ configured, allowedOrigins }: KeyUpstreamsOptions): KeyUpstreams {
  /** @throws UsageError for what is no address of the provider's */
  function parsed(provider: string, baseUrl: string): TrustedUpstream {
    return trustedUpstream(baseUrl, { baseUrlVariable: 'base_url', baseUrlSuffix: providerNamed(provider).baseUrlSuffix });
  }

  return {
    examine(provider, baseUrl) {
      let upstream: TrustedUpstream;
      try {
        upstream = parsed(provider, baseUrl);
      } catch (error) {
        if (error instanceof UsageError) throw new HttpProblem('upstream_not_allowed', error.message);
        throw error;
      }
      if (!allowedOrigins.has(originOf(upstream))) {
        throw new HttpProblem('upstream_not_allowed', 'The origin of base_url is not among those that the operator allows (KEYGUARD_UPSTREAM_ORIGINS).');
      }
      return originOf(upstream) + upstream.basePath;
    },
    of({ provider, baseUrl }) {
      if (baseUrl === null) return configured.get(provider) ?? null;
      try {
        const upstream = parsed(provider, baseUrl);
        return allowedOrigins.has(originOf(upstream)) ? upstream : null;
      } catch {
        return null;
      }
    },
  };
}
