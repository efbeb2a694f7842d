/**
 * What a verifier demands: parsed once, checked, frozen. There is no permissive default: what must be known to be safe must be
 * given.
 */
import { isAuthority, MAX_AGE_SECONDS, MAX_FUTURE_SECONDS, type Carriage } from '@keyguard/core/canonical';
import { UsageError } from '@keyguard/core/errors';
import { ipMatcher, type IpMatcher } from './ip.ts';

const MEBIBYTE = 1024 * 1024;

/** What a verifier is to demand. Left out means the strict default, never a permissive one. */
export interface PolicyOptions {
  /**
   * The exact `host[:port]` values under which clients reach this server, lower-case, default ports dropped. With one, every
   * request is taken to be for it; with several, the `Host` header must name one. Never taken from `X-Forwarded-*`.
   */
  readonly authorities: readonly string[];
  /**
   * The one carriage in which signatures are taken: `headers` for the `x-keyguard-*` headers, `rfc9421` for `Signature-Input`,
   * `Signature` and `Content-Digest`. A request in the other one, or in both, is refused. Default `headers`.
   */
  readonly carriage?: Carriage;
  /** The oldest request that is accepted, in seconds: 1 to 300, default 300. */
  readonly maxAgeSeconds?: number;
  /** How far ahead a request may be dated, in seconds: 0 to 60, default 60. */
  readonly maxFutureSeconds?: number;
  /** The largest body, in bytes. Default 10 MiB. */
  readonly maxBodyBytes?: number;
  /** All bodies together that are held before they are verified, in bytes. Default 256 MiB. */
  readonly maxUnverifiedBytes?: number;
  /** Within how many milliseconds a body must have arrived. Default 30,000. */
  readonly bodyTimeoutMs?: number;
  /** Within how many milliseconds a seam must answer. Default 2,000. */
  readonly seamTimeoutMs?: number;
  /** Requests per minute of one proven device. Default 600. A device may have a limit of its own. */
  readonly requestsPerMinute?: number;
  /** Requests per minute of one address before anything is proven. Default 6,000. */
  readonly requestsPerMinutePerIp?: number;
  /** Addresses and CIDR ranges that may call at all; `null` or absent for any. */
  readonly ipAllowlist?: readonly string[] | null;
}

/** A policy that was checked, with every default filled in. Frozen. */
export interface Policy extends Required<Omit<PolicyOptions, 'ipAllowlist'>> {
  readonly allowsIp: IpMatcher;
}

/**
 * The policy that `options` describe.
 * @throws UsageError `invalid_option`, naming every fault at once
 */
export function definePolicy(options: PolicyOptions): Policy {
  const faults: string[] = [];
  const integer = (name: keyof PolicyOptions, fallback: number, min: number, max: number): number => {
    const value = options[name] ?? fallback;
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value;
    faults.push(`${name} must be an integer from ${min} to ${max}`);
    return fallback;
  };
  const { authorities, carriage = 'headers', ipAllowlist = null } = options;
  if (!Array.isArray(authorities) || authorities.length === 0) faults.push('authorities must name at least one host[:port]');
  else {
    for (const authority of authorities) {
      if (typeof authority !== 'string' || !isAuthority(authority) || /:(?:80|443)$/.test(authority)) {
        faults.push(`authorities: "${String(authority)}" is not a lower-case host[:port] without its default port`);
      }
    }
  }
  if (carriage !== 'headers' && carriage !== 'rfc9421') faults.push('carriage must be "headers" or "rfc9421"');
  let allowsIp: IpMatcher = () => true;
  if (ipAllowlist !== null) {
    try {
      allowsIp = ipMatcher(ipAllowlist);
    } catch (error) {
      faults.push(`ipAllowlist: ${(error as Error).message}`);
    }
  }
  const policy: Policy = {
    authorities: Object.freeze([...(authorities ?? [])]),
    carriage,
    maxAgeSeconds: integer('maxAgeSeconds', MAX_AGE_SECONDS, 1, MAX_AGE_SECONDS),
    maxFutureSeconds: integer('maxFutureSeconds', MAX_FUTURE_SECONDS, 0, MAX_FUTURE_SECONDS),
    maxBodyBytes: integer('maxBodyBytes', 10 * MEBIBYTE, 0, 1024 * MEBIBYTE),
    maxUnverifiedBytes: integer('maxUnverifiedBytes', 256 * MEBIBYTE, 0, Number.MAX_SAFE_INTEGER),
    bodyTimeoutMs: integer('bodyTimeoutMs', 30_000, 1, 3_600_000),
    seamTimeoutMs: integer('seamTimeoutMs', 2000, 1, 60_000),
    requestsPerMinute: integer('requestsPerMinute', 600, 1, 1_000_000_000),
    requestsPerMinutePerIp: integer('requestsPerMinutePerIp', 6000, 1, 1_000_000_000),
    allowsIp,
  };
  if (faults.length > 0) throw new UsageError('invalid_option', `The policy is not usable: ${faults.join('; ')}.`);
  return Object.freeze(policy);
}
