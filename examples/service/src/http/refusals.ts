/**
 * Every refusal by the control plane goes on record before it leaves, whoever was refused and by whom: at the door, by a schema, by a
 * handler. An entry says what was asked for, with which code it was refused, and which fields were wrong. It never holds a value of
 * the request's, nor a name that the caller chose.
 */
import type { ErrorRequestHandler, Request } from 'express';
import * as z from 'zod';
import type { AuditEntry } from '@keyguard/core/seams';
import type { Operation } from './operations.ts';
import { refusalCode } from './problems.ts';
import { currentRequest } from './request-context.ts';

export interface Refusal {
  /** What is alike: whose, of what and why. For somebody unknown it leaves out whose. */
  readonly kind: string;
  readonly entry: AuditEntry;
  /** There is nothing here that could have been refused: what a scanner asks for. */
  readonly isOfNothing: boolean;
}

/** Told of a refusal unless the request is on record as refused already, by something that knew more of it. */
export function refusalsOnRecord(record: (refusal: Refusal) => Promise<void>): ErrorRequestHandler {
  return async (error, request, _response, next) => {
    const code = refusalCode(error);
    if (code !== null && currentRequest()?.refusal.isOnRecord !== true) await record(refusalOf(error, code, request));
    next(error);
  };
}

function refusalOf(error: unknown, code: string, request: Request): Refusal {
  const { operation, principal } = request;
  const action = operation?.action ?? 'request.refused';
  const fields = operation === undefined ? [] : wrongFields(error, operation);
  const entry: AuditEntry = {
    action,
    outcome: 'refused',
    actor: principal?.actor ?? 'unknown',
    code,
    // A method is one of those that Node knows; a path that leads nowhere may hold anything, also a token.
    ...(operation === undefined ? { method: request.method } : { path: principal === undefined ? operation.path : shownPath(operation, request) }),
    ...(fields.length > 0 && { fields }),
  };
  return { kind: principal === undefined ? code : `${action} ${code} ${principal.actor}`, entry, isOfNothing: operation === undefined && code === 'not_found' };
}

/** The path as it may be written down: what opens something by being known, and what is the name of nothing, stands there by its name. */
function shownPath({ path: pattern, params = z.strictObject({}) }: Operation, { path }: Request): string {
  const [names, parts] = [pattern.split('/'), path.split('/')];
  const given = names.flatMap((name, i) => (name.startsWith('{') ? [[name.slice(1, -1), decodeURIComponent(parts[i] ?? '')]] : []));
  if (!params.safeParse(Object.fromEntries(given)).success) return pattern;
  return names.map((name, i) => (name === '{token}' || name === '{code}' ? name : (parts[i] ?? ''))).join('/');
}

/** Of the fields that the operation has, those that did not pass. */
function wrongFields(error: unknown, { query, body }: Operation): string[] {
  if (!(error instanceof z.ZodError)) return [];
  const own = new Set([query, body].flatMap((schema) => (schema === undefined ? [] : namesIn(schema))));
  return [...new Set(error.issues.map(({ path: [name] }) => name).filter((name): name is string => typeof name === 'string' && own.has(name)))].toSorted();
}

function namesIn(schema: z.core.$ZodType): string[] {
  if (schema instanceof z.ZodObject) return Object.keys(schema.shape);
  return schema instanceof z.ZodUnion ? schema.options.flatMap(namesIn) : [];
}
