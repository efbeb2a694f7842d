/** Requests that fit the API's document, made from it: what an operation takes is read there, and nowhere else. */
import { randomUUID } from 'node:crypto';

export interface Schema {
  readonly $ref?: string;
  readonly type?: string | readonly string[];
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly format?: string;
  readonly pattern?: string;
  readonly minimum?: number;
  readonly minLength?: number;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly items?: Schema;
  readonly minItems?: number;
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly allOf?: readonly Schema[];
}

export interface Parameter {
  readonly name: string;
  readonly in: 'path' | 'query' | 'header' | 'cookie';
  readonly required?: boolean;
  readonly schema: Schema;
}

export interface Described {
  readonly id: string;
  readonly method: string;
  readonly path: string;
  readonly tag: string;
  readonly parameters: readonly Parameter[];
  readonly body: Schema | null;
  /** Whether it needs no credential. */
  readonly isPublic: boolean;
  /** The media types in which it may succeed. */
  readonly types: readonly string[];
  /** Whether it succeeds with JSON. */
  readonly isJson: boolean;
}

interface Document {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Raw>>>>;
  readonly components?: { readonly schemas?: Readonly<Record<string, Schema>> };
}

interface Raw {
  readonly operationId: string;
  readonly tags: readonly string[];
  readonly security?: readonly object[];
  readonly 'x-plane'?: string;
  readonly parameters?: readonly Parameter[];
  readonly responses: Readonly<Record<string, { readonly content?: Readonly<Record<string, unknown>> }>>;
  readonly requestBody?: { readonly content: Readonly<Record<string, { readonly schema: Schema }>> };
}

/** The operations of the control plane. */
export function operationsIn(document: object): readonly Described[] {
  return Object.entries((document as Document).paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([, operation]) => operation['x-plane'] === undefined)
      .map(([method, { operationId: id, tags, parameters = [], security = [], requestBody, responses }]) => ({
        id, method: method.toUpperCase(), path, tag: tags[0]!, parameters,
        body: requestBody?.content['application/json']?.schema ?? null,
        isPublic: security.length === 0,
        types: Object.entries(responses).flatMap(([status, { content = {} }]) => (status.startsWith('2') ? Object.keys(content) : [])),
        isJson: 'application/json' in (responses['200']?.content ?? responses['201']?.content ?? { 'application/json': {} }),
      })),
  );
}

const TEXTS = ['text', '1', '0', 'soc2', 'someone@example.com', '2030-01-01T00:00:00.000Z', 'a'.repeat(43), 'A'.repeat(22), '0'.repeat(64), '127.0.0.1', 'https://example.com', 'TEXT_NAME'];

function text({ format, pattern, minLength = 0 }: Schema): string {
  if (format === 'uuid') return randomUUID();
  const candidates = [randomUUID(), ...TEXTS];
  const fits = format === 'email' ? 'someone@example.com' : format === 'date-time' ? '2030-01-01T00:00:00.000Z' : candidates.find((one) => pattern === undefined || new RegExp(pattern, 'u').test(one));
  return (fits ?? 'text').padEnd(minLength, 'x');
}

/** A value that fits `schema`, as far as a schema says what fits. */
export function sampleOf(document: object, schema: Schema): unknown {
  const { $ref, anyOf, oneOf, allOf, type } = schema;
  if ($ref !== undefined) return sampleOf(document, (document as Document).components!.schemas![$ref.split('/').at(-1)!]!);
  if (schema.const !== undefined) return schema.const;
  if (schema.enum !== undefined) return schema.enum[0];
  const branch = (anyOf ?? oneOf ?? allOf)?.[0];
  if (branch !== undefined) return sampleOf(document, branch);
  switch (Array.isArray(type) ? type[0] : type) {
    case 'object':
      return Object.fromEntries(Object.entries(schema.properties ?? {}).filter(([name]) => schema.required?.includes(name) === true).map(([name, member]) => [name, sampleOf(document, member)]));
    case 'array':
      return Array.from({ length: schema.minItems ?? 0 }, () => sampleOf(document, schema.items ?? {}));
    case 'integer':
    case 'number':
      return Math.max(schema.minimum ?? 1, 1);
    case 'boolean':
      return false;
    case 'null':
      return null;
    default:
      return text(schema);
  }
}

/** The names of the members that a body may have. */
export function membersOf(document: object, schema: Schema): readonly string[] {
  const { $ref, properties = {}, anyOf = [], oneOf = [], allOf = [] } = schema;
  if ($ref !== undefined) return membersOf(document, (document as Document).components!.schemas![$ref.split('/').at(-1)!]!);
  return [...new Set([...Object.keys(properties), ...[...anyOf, ...oneOf, ...allOf].flatMap((one) => membersOf(document, one))])];
}

/** The path of an operation with `values` in it, and what fits where there is none. */
export function pathOf(document: object, { path, parameters }: Described, values: Readonly<Record<string, string>> = {}): string {
  return path.replaceAll(/\{([a-z_]+)\}/g, (_, name: string) => {
    const schema = parameters.find((one) => one.in === 'path' && one.name === name)?.schema ?? {};
    return encodeURIComponent(values[name] ?? String(sampleOf(document, schema)));
  });
}
