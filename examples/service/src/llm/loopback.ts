/**
 * Where an upstream without TLS is found: on this machine or nowhere. A provider key goes there in the clear, and a resolver that is
 * mistaken or made to lie must not make another machine of it.
 */
import dns from 'node:dns';
import type { LookupFunction } from 'node:net';

/** Looks a name up as the platform does, and knows the loopback addresses among the answers alone. */
export const loopbackOnly: LookupFunction = (hostname, options, callback) => {
  dns.lookup(hostname, { ...options, all: true }, (error, addresses) => {
    const own = (addresses ?? []).filter(({ address }) => address === '::1' || address.startsWith('127.'));
    const [first] = own;
    if (error !== null || first === undefined) callback(error ?? new Error('The name of a loopback upstream leads elsewhere.'), '');
    else if (options.all === true) callback(null, own);
    else callback(null, first.address, first.family);
  });
};
