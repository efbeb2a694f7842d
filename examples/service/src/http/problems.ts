/**
 * Every refusal of the control plane is an RFC 9457 problem with a `code` and the id of the request. Nothing of an error that is
 * ours (message, stack, cause) leaves.
 */
import type { ErrorRequestHandler, Request, RequestHandler, Response } from 'express';
import type { RejectionSender } from '@keyguard/adapters-express';
import { isRejected, isUnavailable } from '@keyguard/core/errors';
import { describeRejection } from '@keyguard/server-verifier/rejection';
import { ZodError } from 'zod';
import { requestIdOf } from './request-context.ts';

const STATUSES = {
  malformed_request: [400, 'Malformed request'],
  invalid_request: [400, 'Invalid request'],
  invalid_password: [400, 'Wrong password'],
  not_authenticated: [401, 'Not signed in'],
  invalid_email_or_password: [401, 'Wrong e-mail or password'],
  forbidden: [403, 'Not allowed'],
  origin_not_allowed: [403, 'Origin not allowed'],
  address_not_allowed: [403, 'Address not allowed'],
  second_factor_required: [403, 'Second factor required'],
  second_factor_setup_required: [403, 'Second factor not set up'],
  second_factor_invalid: [403, 'Code not accepted'],
  step_up_required: [403, 'Fresh second factor required'],
  link_invalid: [403, 'Link not valid'],
  oidc_refused: [403, 'Sign-in refused'],
  setup_code_invalid: [403, 'Setup code invalid'],
  four_eyes_required: [403, 'Another administrator must do this'],
  not_found: [404, 'Not found'],
  grantee_not_found: [404, 'Nobody to share with'],
  method_not_allowed: [405, 'Method not allowed'],
  not_acceptable: [406, 'Not acceptable'],
  setup_complete: [409, 'Already set up'],
  account_exists: [409, 'There is such an account'],
  second_factor_exists: [409, 'There is a second factor'],
  second_factor_missing: [409, 'There is no second factor'],
  illegal_transition: [409, 'Not possible in this state'],
  owner_required: [409, 'Owner required'],
  idempotency_in_flight: [409, 'Being carried out'],
  idempotency_reply_lost: [409, 'Answer lost'],
  idempotency_reply_withheld: [409, 'Answer not shown again'],
  checkpoint_pending: [409, 'No checkpoint yet'],
  would_lock_out: [409, 'Would lock you out'],
  name_taken: [409, 'Name taken'],
  system_role: [409, 'Role of the system'],
  role_assigned: [409, 'Role is held'],
  role_held: [409, 'Held already'],
  unknown_role: [409, 'No such role'],
  unknown_project: [409, 'No such project'],
  last_administrator: [409, 'Last administrator'],
  project_archived: [409, 'Project archived'],
  project_in_use: [409, 'Project in use'],
  quota_exceeded: [409, 'As many as one person may have'],
  not_intact: [409, 'Changed in the database'],
  not_exportable: [409, 'Has no such form'],
  secret_expired: [410, 'Secret expired'],
  version_destroyed: [410, 'Version destroyed'],
  precondition_failed: [412, 'Changed meanwhile'],
  unsupported_media_type: [415, 'Unsupported media type'],
  misdirected_request: [421, 'Misdirected request'],
  idempotency_key_reused: [422, 'Idempotency-Key used before'],
  upstream_not_allowed: [422, 'Upstream not allowed'],
  verification_failed: [422, 'Not accepted by the provider'],
  precondition_required: [428, 'Precondition required'],
  rate_limited: [429, 'Too many requests'],
  internal_error: [500, 'Internal error'],
  integrity_failed: [500, 'Stored data not intact'],
} as const satisfies Record<string, readonly [number, string]>;

export type ProblemCode = keyof typeof STATUSES;

/** Every code of the control plane, and the status with which it leaves. */
export function problemCodes(): readonly (readonly [ProblemCode, number])[] {
  return Object.entries(STATUSES).map(([code, [status]]) => [code as ProblemCode, status]);
}

// Of the verifier's codes, those that any route may answer with.
const SHARED = { request_timeout: 408, body_too_large: 413, store_unavailable: 503, overloaded: 503 } as const;

/** A code with which a request of the control plane may be refused, whoever refuses it. */
export type Refusal = ProblemCode | keyof typeof SHARED;

/** With which status a refusal of this code leaves. */
export function refusalStatus(code: Refusal): number {
  return code in SHARED ? SHARED[code as keyof typeof SHARED] : STATUSES[code as ProblemCode][0];
}

/** The `type` of a problem: a name, and no address to fetch. */
export function problemType(code: string): string {
  return `urn:keyguard:problem:${code}`;
}

/** Thrown by a handler, or by what it calls, to refuse. `detail` is for the caller: it MUST NOT hold anything secret. */
export class HttpProblem extends Error {
  override readonly name = 'HttpProblem';
  readonly code: ProblemCode;
  readonly retryAfterSeconds: number | undefined;

  constructor(code: ProblemCode, detail: string, options: { readonly retryAfterSeconds?: number } = {}) {
    super(detail);
    this.code = code;
    this.retryAfterSeconds = options.retryAfterSeconds;
  }
}

/** What another room answers for a thing that is not there, or not the caller's to know of. */
export function notFound(): HttpProblem {
  return new HttpProblem('not_found', 'There is nothing of that id.');
}

/** Writes a problem; the one place that does. */
export function writeProblem(
  request: Request,
  response: Response,
  { status, ...problem }: { readonly status: number; readonly title: string; readonly detail: string; readonly code: string; readonly [name: string]: unknown },
): void {
  response
    .status(status)
    .set('cache-control', 'no-store')
    .type('application/problem+json')
    .send(JSON.stringify({ type: problemType(problem.code), status, ...problem, request_id: requestIdOf(request) }));
}

/** The verifier's refusals, with the id of the request. */
export const sendRejectionProblem: RejectionSender = ({ problem }, request, response) => {
  writeProblem(request, response, { ...problem });
};

export const routeNotFound: RequestHandler = () => {
  throw new HttpProblem('not_found', 'There is no such route.');
};

function isClientError(error: unknown): boolean {
  const { status, expose } = (error ?? {}) as { status?: unknown; expose?: unknown };
  // What the router throws for a path with broken escapes; never by us.
  return (error instanceof URIError || expose === true) && typeof status === 'number' && status >= 400 && status < 500;
}

/** With which code `error` leaves, where it refuses the caller; `null` where it is an outage or a fault of ours. */
export function refusalCode(error: unknown): string | null {
  if (error instanceof HttpProblem) return error.code;
  if (error instanceof ZodError) return 'invalid_request';
  if (isRejected(error)) return error.code;
  return isClientError(error) && !isUnavailable(error) ? 'malformed_request' : null;
}

/** The last handler. `onFault` hears of what is ours to repair. */
export function errorProblems(onFault: (error: unknown, requestId: string) => void): ErrorRequestHandler {
  return (error, request, response, _next) => {
    if (response.headersSent) {
      onFault(error, requestIdOf(request));
      response.destroy();
      return;
    }
    // Else the rest of an unread body would be read for nothing, or taken for the next request.
    if (!request.complete) response.set('connection', 'close');
    if (error instanceof HttpProblem) {
      const [status, title] = STATUSES[error.code];
      if (error.retryAfterSeconds !== undefined) response.set('retry-after', String(error.retryAfterSeconds));
      if (status === 401) response.set('www-authenticate', 'Bearer');
      writeProblem(request, response, { status, title, detail: error.message, code: error.code });
    } else if (error instanceof ZodError) {
      const errors = error.issues.map(({ path, message }) => ({ path: path.join('.'), message }));
      const detail = errors.map(({ path, message }) => (path === '' ? message : `${path}: ${message}`)).join('; ');
      writeProblem(request, response, { status: 400, title: STATUSES.invalid_request[1], detail, code: 'invalid_request', errors });
    } else if (isRejected(error) || isUnavailable(error)) {
      if (isUnavailable(error)) onFault(error, requestIdOf(request));
      const answer = describeRejection(error, Date.now());
      response.set(answer.headers);
      writeProblem(request, response, { ...answer.problem });
    } else if (isClientError(error)) {
      writeProblem(request, response, { status: 400, title: STATUSES.malformed_request[1], detail: 'The request is not well-formed.', code: 'malformed_request' });
    } else {
      onFault(error, requestIdOf(request));
      writeProblem(request, response, { status: 500, title: STATUSES.internal_error[1], detail: 'Something failed on our side. The request id says where to look.', code: 'internal_error' });
    }
  };
}
