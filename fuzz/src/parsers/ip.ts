/** `ip`: addresses and ranges, against `net.isIP` and `net.BlockList` of Node. */
import { BlockList, isIP } from 'node:net';
import { ipBucket, ipMatcher } from '@keyguard/server-verifier/ip';
import type { Generator } from '../generator.ts';
import { mutateText } from '../mutate.ts';
import { agree, demand, outcomeOf, type Parser } from '../parser.ts';

function ipv4(random: Generator): string {
  return Array.from(random.bytes(4), (byte) => String(random.oneIn(3) ? random.pick([0, 1, 10, 127, 192, 255]) : byte)).join('.');
}

function ipv6(random: Generator): string {
  const parts = Array.from({ length: 8 }, () => (random.oneIn(2) ? '0' : random.below(65_536).toString(16)));
  const text = parts.join(':');
  if (random.oneIn(4)) return `::ffff:${ipv4(random)}`;
  return random.oneIn(2) ? text.replace(/(?:^|:)0(?::0)+(?::|$)/, '::') : text;
}

const address = (random: Generator): string => (random.oneIn(2) ? ipv4(random) : ipv6(random));
const WORDS = ['0x7f', '010', '127.1', '::', 'ffff:', '%eth0', '/24', '/0', '/33', ' ', '1', '0', '.', ':', '256', '4294967295', '\uff11'] as const;

/** The IPv4 address that an IPv6 one carries, as Node reads it. */
function unmapped(text: string): { readonly family: 'ipv4' | 'ipv6'; readonly address: string } | null {
  const family = isIP(text);
  if (family === 0) return null;
  if (family === 4) return { family: 'ipv4', address: text };
  const [zoneless = ''] = text.split('%');
  const hex = new URL(`http://[${zoneless}]/`).hostname;
  const mapped = /^\[::ffff:([0-9a-f]{1,4}):([0-9a-f]{1,4})\]$/.exec(hex);
  if (mapped === null) return { family: 'ipv6', address: zoneless };
  const [high, low] = [Number.parseInt(mapped[1]!, 16), Number.parseInt(mapped[2]!, 16)];
  return { family: 'ipv4', address: [high >> 8, high & 255, low >> 8, low & 255].join('.') };
}

/** An entry of an allowlist; `null` for one that must be refused. */
function rangeOf(entry: string): { readonly list: BlockList; readonly family: 'ipv4' | 'ipv6' } | null {
  const slash = entry.indexOf('/');
  const text = slash < 0 ? entry : entry.slice(0, slash);
  const family = isIP(text);
  if (family === 0 || text.includes('%')) return null;
  const list = new BlockList();
  if (slash < 0) {
    const single = unmapped(text)!;
    list.addAddress(single.address, single.family);
    return { list, family: single.family };
  }
  const bits = entry.slice(slash + 1);
  if (!/^(?:0|[1-9][0-9]{0,2})$/.test(bits) || Number(bits) > (family === 4 ? 32 : 128)) return null;
  list.addSubnet(text, Number(bits), family === 4 ? 'ipv4' : 'ipv6');
  return { list, family: family === 4 ? 'ipv4' : 'ipv6' };
}

export const IP: readonly Parser[] = [
  {
    name: 'ip.ipMatcher, its allowlist',
    try(random) {
      const plain = address(random);
      const range = random.oneIn(2) ? plain : `${plain}/${random.below(plain.includes(':') ? 131 : 35)}`;
      const entry = random.oneIn(3) ? range : mutateText(random, range, WORDS);
      const outcome = outcomeOf(() => ipMatcher([entry]), 'UsageError invalid_option');
      const expected = rangeOf(entry);
      if (outcome.accepted && expected !== null) {
        const near = unmapped(plain.replace(/[0-9a-f]$/, (digit) => (random.oneIn(2) ? digit : '7')));
        // A range of mapped addresses is one of IPv6, and no caller is seen as one of these.
        if (near !== null) demand(outcome.value(near.address) === (near.family === expected.family && expected.list.check(near.address, near.family)), `judged ${near.address} otherwise for ${entry}`);
      }
      return agree(outcome.accepted, expected !== null, entry);
    },
  },
  {
    name: 'ip.ipMatcher, the caller',
    try(random) {
      const plain = address(random);
      const caller = random.oneIn(3) ? plain : mutateText(random, plain, WORDS);
      const entry = `${random.oneIn(3) ? address(random) : plain}/${random.pick([0, 1, 8, 24, 31, 32])}`;
      const expected = rangeOf(entry)!;
      const read = unmapped(caller);
      return agree(ipMatcher([entry])(caller), read !== null && read.family === expected.family && expected.list.check(read.address, read.family), entry, caller);
    },
  },
  {
    name: 'ip.ipBucket',
    try(random) {
      const plain = address(random);
      const caller = random.oneIn(3) ? plain : mutateText(random, plain, WORDS);
      const bucket = ipBucket(caller);
      const read = unmapped(caller);
      if (read === null) return agree(bucket !== 'unknown', false);
      if (read.family === 'ipv4') demand(bucket === read.address, 'another IPv4 bucket');
      else {
        const list = new BlockList();
        demand(bucket.endsWith('::/64'), `no /64 bucket for ${caller}: ${bucket}`);
        list.addSubnet(`${bucket.slice(0, -'::/64'.length)}:0:0:0:0`, 64, 'ipv6');
        demand(list.check(read.address, 'ipv6'), 'the bucket is another network');
      }
      return 'accepted';
    },
  },
];
