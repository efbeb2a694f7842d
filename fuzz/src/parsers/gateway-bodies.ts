/**
 * What the gateway of `examples/service` reads of bodies that it hands on: which models they name, against a second reading of JSON that
 * keeps every member as often as it is written; and a form, against the runtime's own reader and a more generous one.
 */
import { isUtf8 } from 'node:buffer';
import { formFields } from '@keyguard/example-service/llm/form-fields';
import { topMembers, type Member } from '@keyguard/example-service/llm/json-members';
import { modelsInBody } from '@keyguard/example-service/llm/models';
import type { Generator } from '../generator.ts';
import { mutateBytes, mutateList, mutateText, randomText } from '../mutate.ts';
import { agree, demand, demandEqual, outcomeOf, type Parser, type Verdict } from '../parser.ts';

/** A JSON value that keeps what `JSON.parse` forgets: members with one name, and their order. */
type Tree = { readonly members: readonly (readonly [name: string, value: Tree])[] } | { readonly items: readonly Tree[] } | { readonly text: string } | null;

/** A second reading of RFC 8259. `json` MUST be known to be JSON. */
function treeOf(json: string): Tree {
  const tokens = json.matchAll(/"(?:[^"\\]|\\.)*"|[[\]{},:]|[^\s[\]{},:"]+/gs);
  const next = (): string => (tokens.next().value as RegExpExecArray)[0];
  function value(token: string): Tree {
    if (token.startsWith('"')) return { text: JSON.parse(token) as string };
    if (token !== '{' && token !== '[') return null;
    const [members, items]: [[string, Tree][], Tree[]] = [[], []];
    for (let each = next(); each !== '}' && each !== ']'; each = next()) {
      if (each === ',') continue;
      if (token === '[') items.push(value(each));
      else {
        next();
        members.push([JSON.parse(each) as string, value(next())]);
      }
    }
    return token === '{' ? { members } : { items };
  }
  return value(next());
}

/** `value` as JSON, with gaps and escapes that need not be. */
function spelled(random: Generator, value: Tree): string {
  const gap = random.pick(['', '', '', ' ', '\n\t']);
  const text = (plain: string): string =>
    random.oneIn(4) && plain !== '' ? `"${[...plain].map((each) => (random.oneIn(2) ? each.split('').map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`).join('') : JSON.stringify(each).slice(1, -1))).join('')}"` : JSON.stringify(plain);
  if (value === null) return random.pick(['null', 'true', '-1.5e3', '0']);
  if ('text' in value) return text(value.text);
  if ('items' in value) return `[${gap}${value.items.map((each) => spelled(random, each)).join(`,${gap}`)}]`;
  return `{${gap}${value.members.map(([name, each]) => `${text(name)}${gap}:${gap}${spelled(random, each)}`).join(`,${gap}`)}${gap}}`;
}

const NAMES = ['model', 'model', 'Model', 'MODEL', '\uff4dodel', 'tools', 'Tools', 'requests', 'generateContentRequest', 'models', 'fallbacks', 'type', 'messages', 'input', '', '__proto__', '"', '\\', '{', '":', 'tool\u017f'] as const;
const TEXTS = ['gpt-4o', 'image_generation', 'a', '', '\\', '"', '\\"', '{"model":"b"}', '":', '\u2028', '\u{1f600}', 'models/b'] as const;

function randomTree(random: Generator, depth: number): Tree {
  const kind = random.below(depth > 0 ? 8 : 4);
  if (kind === 0) return null;
  if (kind < 4) return { text: random.oneIn(8) ? randomText(random, random.below(12)) : random.pick(TEXTS) };
  if (kind < 6) return { items: Array.from({ length: random.below(4) }, () => randomTree(random, depth - 1)) };
  return { members: Array.from({ length: random.below(5) }, () => [random.oneIn(12) ? randomText(random, random.below(6)) : random.pick(NAMES), randomTree(random, depth - 1)] as const) };
}

/** A JSON object with `first` among its members, and often with a few changes; rarely another value. */
export function randomBody(random: Generator, first: readonly (readonly [string, Tree])[] = []): Uint8Array<ArrayBuffer> {
  const tree = randomTree(random, 5);
  const members = tree !== null && 'members' in tree ? tree.members : ([['x', tree]] as const);
  const json = spelled(random, random.oneIn(20) ? tree : { members: random.oneIn(2) ? [...first, ...members] : [...members, ...first] });
  if (random.oneIn(3)) return mutateBytes(random, Buffer.from(json));
  return new Uint8Array(Buffer.from(random.oneIn(3) ? mutateText(random, json, ['"model":"b",', '\\', '"', '\\u006d', '/**/', ',', '{', '}', '\ufeff']) : json));
}

export function isJsonObject(bytes: Uint8Array): boolean {
  try {
    const value: unknown = JSON.parse(Buffer.from(bytes).toString('utf8'));
    return isUtf8(bytes) && typeof value === 'object' && value !== null && !Array.isArray(value);
  } catch {
    return false;
  }
}

interface Found {
  readonly name: string;
  readonly text: string | null;
  readonly holder: string | null;
  /** The object in which it is written; `null` for the outermost. */
  readonly within: Tree;
}

/** The members of `tree`, and those at most two levels within its members that hold some. */
function membersOf(tree: Tree, holds: (name: string) => boolean): Found[] {
  const found: Found[] = [];
  const textOf = (value: Tree): string | null => (value !== null && 'text' in value ? value.text : null);
  function walk(value: Tree, holder: string, levels: number): void {
    if (value === null || levels === 0 || 'text' in value) return;
    if ('items' in value) for (const item of value.items) walk(item, holder, levels - 1);
    else {
      for (const [name, each] of value.members) {
        found.push({ name, text: textOf(each), holder, within: value });
        walk(each, holder, levels - 1);
      }
    }
  }
  if (tree !== null && 'members' in tree) {
    for (const [name, value] of tree.members) {
      found.push({ name, text: textOf(value), holder: null, within: null });
      if (holds(name)) walk(value, name, 2);
    }
  }
  return found;
}

/** As the most generous reader takes a name. */
const folded = (name: string): string => name.normalize('NFKC').toLowerCase();
const HOLDERS: ReadonlySet<string> = new Set(['tools', 'requests', 'generatecontentrequest', 'generate_content_request']);
const FURTHER: ReadonlySet<string> = new Set(['models', 'fallbacks', 'fallback_models', 'data_sources', 'datasources']);
const isHolder = (name: string): boolean => HOLDERS.has(folded(name));

/** Every model that any reader could find, wherever it looks: first, last, folded; `null` where one of them is no text. */
function modelsAnywhere(tree: Tree): (string | null)[] {
  return membersOf(tree, isHolder).filter(({ name }) => folded(name) === 'model').map(({ text }) => text);
}

/** Whether there is a tool that draws, in an object of a holder that names no model. */
function drawsUnnamed(tree: Tree): boolean {
  const members = membersOf(tree, isHolder).filter(({ holder }) => holder !== null);
  return members.some(({ name, text, within }) => folded(name) === 'type' && text === 'image_generation' && !members.some((other) => other.within === within && folded(other.name) === 'model'));
}

// As long as the runtime's reader wants them.
const BOUNDARIES = ['----formdata-undici-012345678901', '------WebKitFormBoundaryAbCdEf0123456789', "a'_-b0123456789012345678901234"] as const;

interface Part {
  readonly head: string;
  readonly body: string;
}

const PARTS: readonly Part[] = [
  { head: 'Content-Disposition: form-data; name="model"', body: 'whisper-1' },
  { head: 'Content-Disposition: form-data; name="prompt"', body: 'Hallo\r\n--b\r\nü' },
  { head: 'Content-Disposition: form-data; name="file"; filename="a b.wav"\r\nContent-Type: audio/wav', body: '\0\r\n--\xff\n--b0x\n\n' },
  { head: 'content-disposition: form-data; name="Model"', body: 'b' },
  { head: 'Content-Disposition: form-data; name="tags[]"', body: '' },
];
const HEAD_WORDS = ['; name="model"', 'name=model', '; filename="x"', "; name*=utf-8''model", '\r\n ', '\n', '\r', '\\"', '%22', 'Content-Type: text/plain; charset=utf-16', '\r\nContent-Transfer-Encoding: base64', ';', ' ', '\t', '"'];

/** A form, and whether it is one as the SDKs write them. */
function formOf(random: Generator, boundary: string): { readonly bytes: Uint8Array<ArrayBuffer>; readonly isPlain: boolean } {
  let parts = Array.from({ length: random.below(4) }, () => random.pick(PARTS));
  const isMutated = random.oneIn(2);
  if (isMutated) parts = mutateList(random, parts, ({ head, body }) => (random.oneIn(2) ? { head: mutateText(random, head, HEAD_WORDS), body } : { head, body: mutateText(random, body, [`\r\n--${boundary}`, `\n--${boundary}\r\n`, `--${boundary}--`, '\r\n', '\ufeff']) }), () => random.pick(PARTS));
  // What some readers take off the beginning of a name.
  const isPrefixed = random.oneIn(30);
  if (isPrefixed) parts = parts.map(({ head, body }) => ({ head: head.replace('="', `="${random.pick(['\ufeff', '\u00ad', '\u200b', ' ', '+', '.'])}`), body }));
  const end = random.pick(['\r\n', '\r\n', '\r\n', '', '\n', ' \r\n', 'x']);
  const bytes = new Uint8Array(Buffer.from(`${parts.map(({ head, body }) => `--${boundary}\r\n${head}\r\n\r\n${body}\r\n`).join('')}--${boundary}--${end}`));
  return random.oneIn(3) ? { bytes: mutateBytes(random, bytes), isPlain: false } : { bytes, isPlain: !isMutated && !isPrefixed && ['', '\r\n'].includes(end) };
}

/** The names of the parts, for a reader that takes any line end, blanks behind a boundary, and a name without quotes or case. */
function generousNames(bytes: Uint8Array, boundary: string): (string | null)[] {
  const escaped = boundary.replaceAll(/[^A-Za-z0-9]/g, String.raw`\$&`);
  const [, ...parts] = `\n${Buffer.from(bytes).toString('utf8')}`.split(new RegExp(String.raw`(?:\r\n|\r|\n)--${escaped}`));
  const end = parts.findIndex((part) => part.startsWith('--'));
  return parts.slice(0, end < 0 ? undefined : end).map((part) => {
    const lines = part.replaceAll(/\r\n?/g, '\n').replace(/^[ \t]*\n/, '');
    const head = lines.split('\n\n', 1)[0]!.replaceAll(/\n[ \t]+/g, ' ');
    return /^content-disposition\s*:.*?;\s*name\s*=\s*"?([^";\r\n]*)"?/im.exec(head)?.[1] ?? null;
  });
}

async function byRuntime(bytes: Uint8Array<ArrayBuffer>, boundary: string): Promise<readonly [string, string | null][] | null> {
  try {
    const data = await new Response(bytes, { headers: { 'content-type': `multipart/form-data; boundary=${boundary}` } }).formData();
    return [...data].map(([name, value]) => [name, typeof value === 'string' ? value : null]);
  } catch {
    return null;
  }
}

export const GATEWAY_BODIES: readonly Parser[] = [
  {
    name: 'json-members.topMembers',
    try(random) {
      const bytes = randomBody(random, [['model', { text: 'gpt-4o' }]]);
      const holds = random.pick([isHolder, () => false, () => true]);
      const outcome = outcomeOf(() => topMembers(bytes, holds));
      const members = outcome.accepted ? outcome.value : null;
      if (members !== null && isJsonObject(bytes)) {
        const expected = membersOf(treeOf(Buffer.from(bytes).toString('utf8')), holds);
        demandEqual(members.map(({ name, text, holder }) => ({ name, text, holder })), expected.map(({ name, text, holder }) => ({ name, text, holder })), 'what is written in it');
        const [parts, objects] = [new Map<Member['part'], Tree>(), new Map<Tree, Member['part']>()];
        for (const [i, { part }] of members.entries()) {
          const { within } = expected[i]!;
          if (parts.has(part)) demand(parts.get(part) === within, 'members of two objects have one number');
          if (objects.has(within)) demand(objects.get(within) === part, 'members of one object have two numbers');
          parts.set(part, within);
          objects.set(within, part);
        }
      }
      return agree(members !== null, isJsonObject(bytes), Buffer.from(bytes).toString('latin1'));
    },
  },
  {
    name: 'models.modelsInBody, JSON',
    try(random) {
      const named = (type: string): Tree => ({ members: [['type', { text: type }], ...(random.oneIn(2) ? [['model', { text: 'gpt-image-1' }] as const] : [])] });
      const holders = ['tools', 'requests', 'generateContentRequest'].filter(() => random.oneIn(3));
      const held = holders.map((name) => [name, random.oneIn(2) ? named(random.pick(['image_generation', 'web_search'])) : { items: [named(random.pick(['image_generation', 'web_search']))] }] as const);
      const bytes = randomBody(random, [['model', { text: 'gpt-4o' }], ...held]);
      const contentType = random.pick(['application/json', 'application/json', 'application/json; charset=utf-8', 'Application/JSON', 'application/json; charset=utf-7', 'text/json', null]);
      const outcome = outcomeOf(() => modelsInBody({ contentType, body: bytes }));
      const found = outcome.accepted ? outcome.value : null;
      if (found === null) return 'refused';
      demand(isJsonObject(bytes), 'read what is no JSON object');
      const text = Buffer.from(bytes).toString('utf8');
      const tree = treeOf(text);
      // Whichever member a reader takes, it is one of those that were found.
      demandEqual([...(found.model === null ? [] : [found.model]), ...found.inside].toSorted(), modelsAnywhere(tree).toSorted(), 'the models');
      const last = JSON.parse(text) as { model?: unknown };
      demandEqual(Object.hasOwn(last, 'model') ? last.model : null, found.model, 'what JSON.parse takes for the model');
      demand(!membersOf(tree, () => false).some(({ name }) => FURTHER.has(folded(name))), 'overlooked further models');
      demand(!drawsUnnamed(tree), 'overlooked a tool that draws with a model of its own');
      return 'accepted';
    },
  },
  {
    name: 'form-fields.formFields',
    async try(random): Promise<Verdict> {
      const boundary = random.pick(BOUNDARIES);
      const { bytes, isPlain } = formOf(random, boundary);
      const outcome = outcomeOf(() => formFields(bytes, boundary));
      const fields = outcome.accepted ? outcome.value : null;
      if (fields === null) return isPlain ? agree(false, true, Buffer.from(bytes).toString('latin1')) : 'refused';
      const names = fields.map(({ name }) => name);
      demand(generousNames(bytes, boundary).join('\0') === names.join('\0'), `a generous reader finds others: ${JSON.stringify(Buffer.from(bytes).toString('latin1'))}`);
      const read = await byRuntime(bytes, boundary);
      // The runtime wants at least one part, and none of its readers may find another text where one was found.
      if (fields.length > 0) {
        if (read === null) return agree(true, false, Buffer.from(bytes).toString('latin1'));
        demand(read.map(([name]) => name).join('\0') === names.join('\0'), `the runtime finds others: ${JSON.stringify(Buffer.from(bytes).toString('latin1'))}`);
        for (const [i, { text }] of fields.entries()) if (text !== null) demand(text === read[i]![1], 'another text than the runtime reads');
      }
      return 'accepted';
    },
  },
];
