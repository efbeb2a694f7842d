/**
 * Addresses: allowlists and the buckets by which unproven callers are counted. The address itself is trusted: an adapter takes
 * it from the socket, or from proxies that it was told to trust.
 */
import { UsageError } from '@keyguard/core/errors';
import ipaddr from 'ipaddr.js';
import { isIP } from 'node:net';

type Address = ipaddr.IPv4 | ipaddr.IPv6;

// On which interface a link-local address is: says nothing of who calls.
const ZONE = /%.*$/s;
const DOTTED = /(\d+)\.(\d+)\.(\d+)\.(\d+)$/;

const hex = (high: string, low: string): string => (Number(high) * 256 + Number(low)).toString(16);

/**
 * The address that `ip` spells by the standards, and nothing else. By itself the library also reads `012.1`, `0x7f.1` and
 * `2130706433`, as C once did and no two programs alike, and takes `::192.0.2.1` for 192.0.2.1, which it is not.
 */
function read(ip: string): Address | null {
  const version = isIP(ip);
  if (version === 4) return ipaddr.IPv4.parse(ip);
  return version === 0 ? null : ipaddr.IPv6.parse(ip.replace(ZONE, '').replace(DOTTED, (_, a, b, c, d) => `${hex(a, b)}:${hex(c, d)}`));
}

/** The address as it is meant: an IPv4 address that came mapped into IPv6 is an IPv4 address. */
function parse(ip: string): Address | null {
  const address = read(ip);
  return address instanceof ipaddr.IPv6 && address.isIPv4MappedAddress() ? address.toIPv4Address() : address;
}

const PREFIX = /^(?:0|[1-9][0-9]{0,2})$/;

/** An entry of an allowlist as address and prefix length; `null` for what is neither an address nor a range. */
function parseRange(entry: string): [Address, number] | null {
  const slash = entry.indexOf('/');
  const ip = slash < 0 ? entry : entry.slice(0, slash);
  // A range is what was written, mapped or not; a single address is what callers come from.
  const address = slash < 0 ? parse(ip) : read(ip);
  // A zone means something on one machine only.
  if (address === null || ip.includes('%')) return null;
  const all = address.kind() === 'ipv4' ? 32 : 128;
  const bits = slash < 0 ? String(all) : entry.slice(slash + 1);
  return PREFIX.test(bits) && Number(bits) <= all ? [address, Number(bits)] : null;
}

/** Whether an address is allowed. Answers `false` for what is no address. */
export type IpMatcher = (ip: string | null) => boolean;

/**
 * A matcher for addresses and CIDR ranges, IPv4 and IPv6, each spelled as standards do: four decimal numbers without leading zeros,
 * or RFC 4291, without a zone.
 * @throws UsageError `invalid_option` for an entry that is neither
 */
export function ipMatcher(allowlist: readonly string[]): IpMatcher {
  const ranges = allowlist.map((entry) => {
    const range = parseRange(entry);
    if (range === null) throw new UsageError('invalid_option', `"${entry}" is neither an IP address nor a CIDR range.`);
    return range;
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
