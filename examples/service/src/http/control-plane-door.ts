/**
 * The door of the control plane, before anybody is authenticated: by which name a request came, and from where. A page that had its
 * own name point here (DNS rebinding) comes by that name, and gets no further.
 */
import type { RequestHandler } from 'express';
import { ipMatcher, type IpMatcher } from '@keyguard/server-verifier/ip';
import { HttpProblem } from './problems.ts';

export interface ControlPlaneDoorOptions {
  /** The `host[:port]` values under which people reach the service, lower-case. */
  readonly authorities: readonly string[];
  /** The addresses and ranges that may come in; asked for each request. Whatever it throws is answered. */
  readonly allowlist: () => readonly string[];
}

/** Lets through what came by a name of ours and from an address that may come in. */
export function controlPlaneDoor({ authorities, allowlist }: ControlPlaneDoorOptions): RequestHandler {
  const own = new Set(authorities);
  let matched: readonly string[] | null = null;
  let allows: IpMatcher = () => false;
  return (request, _response, next) => {
    if (countHosts(request.rawHeaders) !== 1 || !own.has(request.headers.host?.toLowerCase() ?? '')) {
      throw new HttpProblem('misdirected_request', 'This service does not go by that name: use the address that it was set up with (KEYGUARD_PUBLIC_URL).');
    }
    const listed = allowlist();
    if (listed !== matched) [matched, allows] = [listed, ipMatcher(listed)];
    if (!allows(request.ip ?? null)) throw new HttpProblem('address_not_allowed', 'The control plane may not be used from this address.');
    next();
  };
}

/** Node keeps the first of several and says nothing; what stands before it may have gone by the last. */
function countHosts(rawHeaders: readonly string[]): number {
  return rawHeaders.filter((name, i) => i % 2 === 0 && name.toLowerCase() === 'host').length;
}
