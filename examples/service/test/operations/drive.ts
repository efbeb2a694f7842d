/** Calls every operation that the API's document describes, with bodies made of their schemas. */
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
  readonly minItems?: number;
  readonly items?: Schema;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly allOf?: readonly Schema[];
  readonly default?: unknown;
}

export interface DrivenOperation {
  readonly id: string;
  readonly method: string;
  readonly path: string;
  readonly body: Schema | null;
}

interface Document {
  readonly paths: Readonly<Record<string, Readonly<Record<string, { operationId: string; requestBody?: { content: Record<string, { schema: Schema }> } }>>>>;
  readonly components?: { readonly schemas?: Readonly<Record<string, Schema>> };
}

/** In an order in which what is made is there when it is asked for, and what ends things comes last. */
export function operationsOf(document: Document): readonly DrivenOperation[] {
  const all = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, { operationId, requestBody }]) => ({
      id: operationId,
      method: method.toUpperCase(),
      path,
      body: requestBody?.content['application/json']?.schema ?? null,
    })),
  );
  const rank = ({ method, path, id }: DrivenOperation): number => {
    if (/sign.?out|change.?password|end|revoke|disable|delete|destroy|remove/i.test(id) || method === 'DELETE') return 5;
    if (method === 'POST' && !path.includes('{')) return 0;
    if (method === 'GET') return path.includes('{') ? 2 : 1;
    return 3;
  };
  return all.toSorted((a, b) => rank(a) - rank(b) || a.path.length - b.path.length);
}

/** What to put into a member of this name; `undefined` for whatever its schema takes. */
export type Fill = (name: string, schema: Schema) => unknown;

export function bodyOf(schema: Schema, document: Document, fill: Fill, name: string = ''): unknown {
  if (schema.$ref !== undefined) return bodyOf(document.components?.schemas?.[schema.$ref.split('/').at(-1)!] ?? {}, document, fill, name);
  const filled = fill(name, schema);
  if (filled !== undefined) return filled;
  if (schema.const !== undefined) return schema.const;
  if (schema.enum !== undefined) return schema.enum[0];
  const [choice] = schema.anyOf ?? schema.oneOf ?? [];
  if (choice !== undefined) return bodyOf(choice, document, fill, name);
  const type = typeof schema.type === 'string' ? schema.type : schema.type?.[0];
  if (schema.properties !== undefined || type === 'object') {
    return Object.fromEntries(
      Object.entries(schema.properties ?? {})
        .filter(([member, inner]) => (schema.required ?? []).includes(member) || fill(member, inner) !== undefined)
        .map(([member, inner]) => [member, bodyOf(inner, document, fill, member)]),
    );
  }
  if (type === 'array') return Array.from({ length: schema.minItems ?? 1 }, () => bodyOf(schema.items ?? {}, document, fill, name));
  if (type === 'integer' || type === 'number') return Math.max(schema.minimum ?? 1, 1);
  if (type === 'boolean') return true;
  if (type === 'null') return null;
  if (schema.format === 'email') return `person-${randomUUID()}@example.com`;
  if (schema.format === 'uuid') return randomUUID();
  if (schema.format === 'date-time') return new Date(Date.now() + 86_400_000).toISOString();
  return `name-${randomUUID().slice(0, 8)}`;
}
