/**
 * Addresses: allowlists and the buckets by which unproven callers are counted. The address itself is trusted: an adapter takes
 * it from the socket, or from proxies that it was told to trust.
 */
import { UsageError } from '@keyguard/core/errors';
import ipaddr from 'ipaddr.js';

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** The address as it is meant: an IPv4 address that came mapped into IPv6 is an IPv4 address. */
function parse(ip: string): Address | null {
  try {
    return ipaddr.process(ip);
  } catch {
    return null;
  }
}

/** Whether an address is allowed. Answers `false` for what is no address. */
export type IpMatcher = (ip: string | null) => boolean;

/**
 * A matcher for addresses and CIDR ranges, IPv4 and IPv6.
 * @throws UsageError `invalid_option` for an entry that is neither
 */
export function ipMatcher(allowlist: readonly string[]): IpMatcher {
  const ranges = allowlist.map((entry): [Address, number] => {
    try {
      if (entry.includes('/')) return ipaddr.parseCIDR(entry);
      const address = ipaddr.process(entry);
      return [address, address.kind() === 'ipv4' ? 32 : 128];
    } catch (cause) {
      throw new UsageError('invalid_option', `"${entry}" is neither an IP address nor a CIDR range.`, { cause });
    }
  });
  return (ip) => {
    const address = ip === null ? null : parse(ip);
    return address !== null && ranges.some(([range, bits]) => range.kind() === address.kind() && address.match(range, bits));
  };
}

/** The key under which an unproven caller is counted: an IPv4 address, or the /64 network of an IPv6 address. */
export function ipBucket(ip: string | null): string {
  if (ip === null) return 'unknown';
  let bucket = buckets.get(ip);
  if (bucket === undefined) {
    bucket = bucketOf(ip);
    if (buckets.size >= BUCKETS) buckets.clear();
    buckets.set(ip, bucket);
  }
  return bucket;
}

// Parsing an IPv6 address costs a tenth of a signature check.
const BUCKETS = 10_000;
const buckets = new Map<string, string>();

function bucketOf(ip: string): string {
  const address = parse(ip);
  if (address === null) return 'unknown';
  if (address.kind() === 'ipv4') return address.toString();
  const network = (address as ipaddr.IPv6).parts.slice(0, 4).map((part) => part.toString(16));
  return `${network.join(':')}::/64`;
}
