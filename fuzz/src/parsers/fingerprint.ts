/** `fingerprint`: signals of hostile or broken platforms, and their digest, against Node's HMAC over the text of `canonicalize`. */
import { createHmac, randomBytes } from 'node:crypto';
import { browserSignals, fingerprintDigest, nodeSignals, type BrowserScope, type FingerprintSignals, type NodeOs } from '@keyguard/core/fingerprint';
import type { Bytes } from '@keyguard/core/seams';
import canonicalize from 'canonicalize';
import type { Generator } from '../generator.ts';
import { mutateText, oddCharacter, randomJson } from '../mutate.ts';
import { agree, demand, demandEqual, isUnicode, outcomeOf, outcomeOfLater, type Parser } from '../parser.ts';

const salt = new Uint8Array(randomBytes(32));
const hmac = (key: Bytes, data: Bytes): Bytes => new Uint8Array(createHmac('sha256', key).update(data).digest());

/** What a platform may answer: anything, or an exception. */
function answer(random: Generator, usual: unknown): unknown {
  switch (random.below(8)) {
    case 0:
      throw new Error('The platform does not tell.');
    case 1:
      return randomJson(random, 1);
    case 2:
      return random.pick<unknown>([undefined, Number.NaN, Infinity, -1, 1n, Symbol('s'), () => 1, new Date(), {}, '\ud800', '', 'x'.repeat(257), 'x'.repeat(256)]);
    case 3:
      return typeof usual === 'string' ? mutateText(random, usual) : random.below(100_000);
    default:
      return usual;
  }
}

/** An object whose members answer as above, each time they are asked. */
function hostile<T extends object>(random: Generator, members: T): T {
  const made = {};
  for (const [name, usual] of Object.entries(members)) {
    Object.defineProperty(made, name, { get: () => answer(random, usual), enumerable: true });
  }
  return made as T;
}

const SYSTEMS = ['Win32', 'MacIntel', 'Linux x86_64', 'iPhone', 'Android', 'Chrome OS', 'FreeBSD'] as const;
const TOLD: Readonly<Record<string, readonly string[]>> = {
  cores: ['unknown', 'to 2', 'to 4', 'to 8', 'to 16', 'to 32', 'more than 32'],
  screen_long: ['unknown', 'to 480', 'to 960', 'to 1440', 'to 1920', 'to 2560', 'more than 2560'],
  screen_short: ['unknown', 'to 480', 'to 960', 'to 1440', 'to 1920', 'to 2560', 'more than 2560'],
  memory_gib: ['unknown', 'to 2', 'to 4', 'to 8', 'to 16', 'to 32', 'to 64', 'to 128', 'more than 128'],
};

function demandSignals(signals: FingerprintSignals, names: string): void {
  demandEqual(Object.keys(signals).toSorted().join(), names, 'the list of signals');
  for (const [name, value] of Object.entries(signals)) {
    // A language may be longer in lower case.
    demand(typeof value === 'string' && value.length <= 1024 && isUnicode(value), `${name} is no short text`);
    demand(TOLD[name]?.includes(value) ?? true, `${name} says more than a bucket`);
  }
}

const SIGNALS = { runtime: 'browser', system: 'windows', language: 'de-at', time_zone: 'Europe/Vienna', cores: 'to 8' };

export const FINGERPRINT: readonly Parser[] = [
  {
    name: 'fingerprint.fingerprintDigest',
    async try(random) {
      const signals: Record<string, unknown> = { ...SIGNALS };
      const name = random.pick([...Object.keys(SIGNALS), oddCharacter(random)]);
      signals[name] = random.oneIn(12) ? random.pick([undefined, 1n, Number.NaN]) : mutateText(random, 'windows');
      const saltVersion = random.oneIn(8) ? random.pick([0, -1, 2 ** 32, 1.5, Number.NaN]) : random.pick([1, 2, 2 ** 32 - 1]);
      const outcome = await outcomeOfLater(() => fingerprintDigest(signals as FingerprintSignals, { salt, saltVersion, hmac }), 'UsageError invalid_option', 'RejectedError json_not_canonical');
      const isVersion = Number.isInteger(saltVersion) && saltVersion >= 1 && saltVersion < 2 ** 32;
      const isText = Object.entries(signals).every(([key, value]) => isUnicode(key) && typeof value === 'string' && isUnicode(value));
      if (outcome.accepted) {
        const version = Buffer.alloc(4);
        version.writeUInt32BE(saltVersion);
        const digest = createHmac('sha256', salt).update('kg-fingerprint-v1\0').update(version).update(canonicalize(signals)!).digest('base64url');
        demandEqual(outcome.value, digest, 'the digest');
      }
      return agree(outcome.accepted, isVersion && isText);
    },
  },
  {
    name: 'fingerprint.browserSignals',
    try(random) {
      const navigator = hostile(random, { platform: random.pick(SYSTEMS), userAgentData: { platform: 'Windows' }, language: 'de-AT', hardwareConcurrency: 8 });
      const scope = hostile(random, { navigator, screen: hostile(random, { width: 1920, height: 1080 }), Intl: { DateTimeFormat: () => ({ resolvedOptions: () => hostile(random, { timeZone: 'Europe/Vienna' }) }) } });
      const outcome = outcomeOf(() => browserSignals(scope as BrowserScope));
      if (outcome.accepted) demandSignals(outcome.value, 'cores,language,runtime,screen_long,screen_short,system,time_zone');
      return 'accepted';
    },
  },
  {
    name: 'fingerprint.nodeSignals',
    try(random) {
      const os = { platform: () => answer(random, 'linux'), arch: () => answer(random, 'x64'), cpus: () => answer(random, [{ model: `  Some   CPU ${oddCharacter(random)}` }]), totalmem: () => answer(random, 2 ** 34) } as NodeOs;
      const outcome = outcomeOf(() => nodeSignals(os));
      if (outcome.accepted) demandSignals(outcome.value, 'architecture,cores,memory_gib,processor,runtime,system');
      return 'accepted';
    },
  },
];
