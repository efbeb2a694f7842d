/**
 * What the control plane can do, one value per operation: its schemas are what requests are checked by, and what the API's document
 * is made of, so that neither can say what the other does not. A handler gets what has passed, and answers with a value.
 */
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { Router, type Request, type RequestHandler, type Response } from 'express';
import type { ZodObject, ZodType, infer as Infer } from 'zod';
import * as z from 'zod';
import type { JsonValue } from '@keyguard/core/seams';
import { UsageError } from '@keyguard/core/errors';
import type { StepUpAction } from '../auth/policy.ts';
import { principalOf, type Authenticate, type Principal } from '../auth/principal.ts';
import type { Permission } from '../roles/permissions.ts';
import type { Cursors, ListIdentity } from './cursors.ts';
import { readIdempotencyKey, type Idempotency } from './idempotency.ts';
import { noBody, type JsonReader } from './json-body.ts';
import { HttpProblem, notFound, type ProblemCode } from './problems.ts';
import { demandAcceptable, demandOwnPage, ifMatchOf, pathOf, queryOf, typesOf } from './request-rules.ts';

/**
 * Who may come as far as the handler. `public`: anyone. `person`: who is signed in. `administrator`: of those, who administers. A
 * permission: every person, and service accounts that have it in their scopes; what a person may do with which row is for the
 * handler and the policies.
 */
export type Access = 'public' | 'person' | 'administrator' | Permission;

export type Method = 'get' | 'post' | 'put' | 'patch' | 'delete';

/** What an operation answers. Whatever it is, no cache keeps it. */
export interface Answer {
  /** 200, or 204 where there is nothing to say. */
  readonly status?: number;
  readonly json?: object;
  /** In place of `json`: bytes of another type, as they come. */
  readonly stream?: { readonly type: string; readonly body: Readable };
  readonly headers?: Readonly<Record<string, string>>;
  /** Of the state that `json` shows: a text without quotes. */
  readonly etag?: string;
}

/** What a handler gets. Everything in it but `request` and `response` has passed the schemas. */
export interface Call<Params, Query, Body> {
  readonly params: Params;
  readonly query: Query;
  readonly body: Body;
  /** Who is calling. @throws HttpProblem `not_authenticated` in a public operation to which nobody signed in */
  readonly principal: Principal;
  /** The states named by If-Match; `null` where it was not sent, or allows any state. */
  readonly ifMatch: readonly string[] | null;
  readonly request: Request;
  readonly response: Response;
}

/** Of an answer that shows a value once: what to ask before it is shown to who lost it on the way. */
export interface ShownOnce {
  /** The member of the answer's JSON that is the value. An answer without it shows none. */
  readonly member: string;
  /** Whether the value of `json`, an answer of before, still opens what it was made for: not used up, not revoked, not over. */
  readonly isGood: (principal: Principal, json: Readonly<Record<string, unknown>>) => Promise<boolean>;
}

/** A schema that takes nothing. */
const nothing = z.strictObject({});
type Nothing = typeof nothing;

export interface OperationSpec<Params extends ZodObject, Query extends ZodObject, Body extends ZodType> {
  /** As generated clients call it. Never changes. */
  readonly id: string;
  /** As the audit log names it, `noun.verb`: the handler's own entries, and the refusals that are written for it. */
  readonly action: string;
  readonly method: Method;
  /** With parameters in braces: `/api/devices/{id}/approve`. */
  readonly path: `/${string}`;
  readonly tag: string;
  /** One line. */
  readonly summary: string;
  readonly description?: string;
  readonly access: Access;
  /** Its answer sets a cookie, so that a page of somebody else's MUST NOT reach it, with whatever credential. */
  readonly setsCookies?: true;
  /**
   * A creation, which an `Idempotency-Key` makes safe to ask for again. Its handler MUST write its audit entry with `recordIn`, in
   * the transaction that creates; only a success is kept, and a refusal sets the key free. Where its answer shows a value that is shown
   * once, it MUST say so here.
   */
  readonly idempotent?: true | ShownOnce;
  /** What the settings may demand a fresh second factor for: 403 `step_up_required` until it was proven again. */
  readonly stepUp?: StepUpAction | ((principal: Principal, body: Infer<Body>) => StepUpAction | null);
  /** Also for a session in which a second factor is still lacking, and with it the right to do anything else. */
  readonly beforeSecondFactor?: boolean;
  /** A path whose parameters do not pass is the path of nothing: 404. */
  readonly params?: Params;
  readonly query?: Query;
  /** Left out: the operation takes no body. */
  readonly body?: Body;
  /** By status: what it means, and the schema of its JSON. */
  readonly answers: Readonly<Record<number, { readonly description: string; readonly json?: ZodType; readonly types?: readonly string[]; readonly headers?: ZodObject }>>;
  /** Refusals of its own, beside those that every operation may give. */
  readonly problems?: readonly ProblemCode[];
}

/** An operation whose types have been forgotten. */
export interface Operation extends OperationSpec<ZodObject, ZodObject, ZodType> {
  readonly handle: (call: Call<never, never, never>) => Promise<Answer>;
}

/** Ties a handler to what it promises. */
export function operation<Params extends ZodObject = Nothing, Query extends ZodObject = Nothing, Body extends ZodType = Nothing>(
  spec: OperationSpec<Params, Query, Body>,
  handle: (call: Call<Infer<Params>, Infer<Query>, Infer<Body>>) => Promise<Answer>,
): Operation {
  return { ...spec, handle } as unknown as Operation;
}

export interface OperationRouterOptions {
  /** Sets the principal of a request, or throws. */
  readonly authenticate: Authenticate;
  /** Throws where the settings demand a fresh second factor for `action`. MUST be there where an operation names an action. */
  readonly demandStepUp?: (principal: Principal, action: StepUpAction) => void;
  readonly readJson: JsonReader;
  readonly idempotency: Idempotency;
  readonly cursors: Cursors;
  /** Whose pages may call what needs no credential, and what sets cookies. */
  readonly origins: readonly string[];
}

declare global {
  namespace Express {
    interface Request {
      /** What is asked for; set by the router of operations as soon as that is clear, before anything is refused. */
      operation?: Operation;
    }
  }
}

/** The routes of `operations`. */
export function operationRouter(operations: readonly Operation[], options: OperationRouterOptions): Router {
  const router = Router({ caseSensitive: true, strict: true });
  for (const one of operations) {
    const path = one.path.replaceAll(/\{([a-z_]+)\}/g, ':$1');
    const named: RequestHandler = (request, _response, next) => {
      request.operation = one;
      next();
    };
    // Before anything else: a body that nobody will read is refused unread.
    const handlers = one.body === undefined && one.method !== 'get' ? [noBody, answering(one, options)] : [answering(one, options)];
    router[one.method](path, named, ...handlers);
  }
  const routes = operations.map(({ path, method }) => ({ method: method.toUpperCase(), pattern: new RegExp(`^${path.replaceAll('.', '\\.').replaceAll(/\{[a-z_]+\}/g, '[^/]+')}$`) }));
  router.use((request, response, next) => {
    const methods = new Set(routes.filter(({ pattern }) => pattern.test(request.path)).map(({ method }) => method));
    if (methods.size === 0) {
      next();
      return;
    }
    if (methods.has('GET')) methods.add('HEAD');
    response.set('allow', [...methods, 'OPTIONS'].join(', '));
    // Without a word on origins: no other page may call the control plane.
    if (request.method === 'OPTIONS') response.status(204).end();
    else throw new HttpProblem('method_not_allowed', `This is there for ${[...methods].join(', ')} only.`);
  });
  return router;
}

function answering(one: Operation, { authenticate, demandStepUp, readJson, idempotency, cursors, origins }: OperationRouterOptions): RequestHandler {
  const { params: paramsSchema = nothing, query: querySchema = nothing } = one;
  const isList = 'cursor' in querySchema.shape;
  const types = typesOf(one.answers);
  if (one.stepUp !== undefined && (demandStepUp === undefined || one.access === 'public')) {
    throw new UsageError('invalid_option', `${one.id} demands a second factor, and nobody asks for it.`);
  }
  return async (request, response) => {
    if (one.method !== 'get' && (one.access === 'public' || one.setsCookies === true)) demandOwnPage(request, origins);
    if (one.access !== 'public') {
      await authenticate(request, { beforeSecondFactor: one.beforeSecondFactor === true });
      demandAccess(principalOf(request), one.access);
      if (typeof one.stepUp === 'string') demandStepUp?.(principalOf(request), one.stepUp);
    }
    demandAcceptable(request, types);
    const ifMatch = ifMatchOf(request, one.problems);
    const params = paramsSchema.safeParse(pathOf(request));
    if (!params.success) throw notFound();
    const { cursor, ...given } = queryOf(request);
    const { limit: _, ...filters } = given;
    const list: ListIdentity = { operation: one.id, userId: request.principal?.userId ?? '', params: request.params, filters };
    const query = querySchema.parse(cursor === undefined ? given : { ...given, cursor: isList ? cursors.read(list, cursor) : cursor });
    const json = one.body === undefined ? undefined : await readJson(request);
    const body = one.body?.parse(json);
    if (typeof one.stepUp === 'function') {
      const wanted = one.stepUp(principalOf(request), body);
      if (wanted !== null) demandStepUp?.(principalOf(request), wanted);
    }
    const idempotencyKey = one.idempotent !== undefined ? readIdempotencyKey(request.headers['idempotency-key']) : null;
    const call = {
      params: params.data,
      query,
      body,
      get principal() {
        return principalOf(request);
      },
      ifMatch,
      request,
      response,
    };
    const work = (): Promise<Answer> => one.handle(call as unknown as Call<never, never, never>);
    const input = [request.params, request.query, json ?? null] as JsonValue[];
    const answer = idempotencyKey === null ? await work() : await idempotency.once({ key: idempotencyKey, operation: one, principal: principalOf(request), input, ...(typeof one.idempotent === 'object' && { shownOnce: one.idempotent }) }, work);
    await send(request, response, isList ? withBoundCursor(answer, (next) => cursors.write(list, next)) : answer);
  };
}

/** @throws HttpProblem `forbidden` */
export function demandAccess(principal: Principal, access: Exclude<Access, 'public'>): void {
  if (access === 'person' || access === 'administrator') {
    if (principal.kind !== 'person') throw new HttpProblem('forbidden', 'Only a person may do this, not a service account.');
    if (access === 'administrator' && !principal.isAdministrator) throw new HttpProblem('forbidden', 'Only an administrator may do this.');
  } else if (principal.kind === 'service_account' && !principal.scopes.has(access)) {
    throw new HttpProblem('forbidden', `This service account has no scope ${access}.`);
  }
}

/** A page, whose cursor is good for its next page and nothing else. */
function withBoundCursor(answer: Answer, bind: (cursor: string) => string): Answer {
  const { next_cursor: cursor } = (answer.json ?? {}) as { next_cursor?: unknown };
  return typeof cursor === 'string' ? { ...answer, json: { ...answer.json, next_cursor: bind(cursor) } } : answer;
}

async function send(request: Request, response: Response, { status, json, stream, headers = {}, etag }: Answer): Promise<void> {
  response.status(status ?? (json === undefined && stream === undefined ? 204 : 200)).set('cache-control', 'no-store').set(headers);
  if (etag !== undefined) response.set('etag', `"${etag}"`);
  if (stream !== undefined) {
    response.set('content-type', stream.type);
    if (request.method === 'HEAD') {
      stream.body.destroy();
      response.end();
      return;
    }
    await pipeline(stream.body, response);
  } else if (json === undefined) response.end();
  else response.json(json);
}
