/**
 * What is left of limits, as fields of an answer.
 *
 * @see draft-ietf-httpapi-ratelimit-headers-10
 */
import type { OutgoingHttpHeaders } from 'node:http';
import type { RateDecision } from '@keyguard/core/seams';

/** One limit, as of the call that is answered. */
export interface LimitState {
  /** Lower-case letters, digits and hyphens. */
  readonly name: string;
  readonly quota: number;
  readonly windowSeconds: number;
  readonly remaining: number;
  /** Unix milliseconds. */
  readonly resetAtMs: number;
}

/** The requests of a device, of which the verifier has debited one. */
export function requestLimit({ limit, remaining, resetAtMs }: RateDecision): LimitState {
  return { name: 'default', quota: limit, windowSeconds: 60, remaining, resetAtMs };
}

/** `RateLimit-Policy` and `RateLimit`. */
export function limitFields(limits: readonly LimitState[], nowMs: number): OutgoingHttpHeaders {
  return {
    'ratelimit-policy': limits.map(({ name, quota, windowSeconds }) => `"${name}";q=${quota};w=${windowSeconds}`).join(', '),
    ratelimit: limits.map(({ name, remaining, resetAtMs }) => `"${name}";r=${remaining};t=${Math.max(0, Math.ceil((resetAtMs - nowMs) / 1000))}`).join(', '),
  };
}
