/** `canonical-json`: reading and writing, against the `canonicalize` library and Node's own JSON. */
import { isUtf8 } from 'node:buffer';
import { canonicalJson, MAX_JSON_DEPTH, parseCanonicalJson } from '@keyguard/core/canonical-json';
import type { JsonValue } from '@keyguard/core/seams';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateText, randomJson } from '../mutate.ts';
import { agree, canonicalised, demand, demandEqual, isUnicode, outcomeOf, type Parser } from '../parser.ts';

const REFUSED = 'RejectedError json_not_canonical';

/** Whether RFC 8785 has a form for `value`: what is left of JavaScript's values once JSON can hold them. */
function isJson(value: unknown, depth = 0): boolean {
  if (typeof value === 'string') return isUnicode(value);
  if (typeof value === 'number') return Number.isFinite(value);
  if (typeof value === 'boolean' || value === null) return true;
  if (typeof value !== 'object' || depth >= MAX_JSON_DEPTH) return false;
  if (Array.isArray(value)) return Array.from(value as unknown[]).every((each) => isJson(each, depth + 1));
  const prototype: unknown = Object.getPrototypeOf(value);
  if (prototype !== null && prototype !== Object.prototype) return false;
  return Object.entries(value).every(([name, each]) => isUnicode(name) && isJson(each, depth + 1));
}

const STRANGE: readonly (() => unknown)[] = [
  () => undefined, () => Number.NaN, () => Infinity, () => 1n, () => Symbol('s'), () => () => 1, () => new Date(0), () => new Map([['a', 1]]), () => '\ud800', () => '\udc00a', () => Object.create(null) as unknown,
  () => ({ toJSON: () => 1 }), () => new Array(3), () => new Uint8Array(2), () => Object.create({ inherited: 1 }) as unknown, () => Object('text') as unknown, () => -0, () => ({ '\ud800': 1 }),
  () => {
    const cycle: unknown[] = [];
    cycle.push(cycle);
    return cycle;
  },
];

/** Puts `inner` somewhere into `value`. */
function plant(random: Generator, value: unknown, inner: unknown): unknown {
  if (typeof value !== 'object' || value === null || random.oneIn(3)) return inner;
  if (Array.isArray(value)) return value.length === 0 ? [inner] : (value as unknown[]).with(random.below(value.length), plant(random, random.pick(value as unknown[]), inner));
  return { ...value, [random.pick(['a', 'b', ''])]: plant(random, random.pick([null, ...Object.values(value as object)]), inner) };
}

/** Arrays and objects in one another, `depth` deep. */
function nested(random: Generator, depth: number): JsonValue {
  let value: JsonValue = random.pick([null, 1, 'a']);
  for (let i = 0; i < depth; i += 1) value = random.oneIn(2) ? [value] : { a: value };
  return value;
}

export const JSONS: readonly Parser[] = [
  {
    name: 'canonical-json.parseCanonicalJson',
    try(random) {
      const valid = canonicalised(random.oneIn(100) ? nested(random, MAX_JSON_DEPTH - random.below(3)) : randomJson(random)) ?? 'null';
      const bytes = random.oneIn(3)
        ? mutateBytes(random, Buffer.from(valid))
        : new Uint8Array(Buffer.from(mutateText(random, valid, [' ', '\\u0041', '\\/', '1.0', '1E3', '-0', '"a":1,', '[', ']', '\\ud800', '\\uD834\\uDD1E', '1e400', '0.1e1', '//', 'NaN'])));
      const outcome = outcomeOf(() => parseCanonicalJson(bytes), REFUSED);
      let expected = false;
      let value: unknown;
      try {
        const text = Buffer.from(bytes).toString('utf8');
        value = JSON.parse(text);
        expected = isUtf8(bytes) && isJson(value) && canonicalised(value) === text;
      } catch {
        expected = false;
      }
      if (outcome.accepted) demandEqual(outcome.value, value, 'the value');
      return agree(outcome.accepted, expected);
    },
  },
  {
    name: 'canonical-json.canonicalJson',
    try(random) {
      let value: unknown = random.oneIn(50) ? nested(random, MAX_JSON_DEPTH - 2 + random.below(5)) : randomJson(random, 4);
      if (random.oneIn(2)) value = plant(random, value, random.pick(STRANGE)());
      const outcome = outcomeOf(() => canonicalJson(value as JsonValue), REFUSED);
      if (outcome.accepted) {
        demand(outcome.value === canonicalised(value), 'wrote another text than canonicalize');
        demand(canonicalJson(parseCanonicalJson(new Uint8Array(Buffer.from(outcome.value)))) === outcome.value, 'does not read what it wrote');
      }
      return agree(outcome.accepted, isJson(value));
    },
  },
];
