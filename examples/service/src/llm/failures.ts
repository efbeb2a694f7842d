/**
 * How a call may fail here, apart from what the provider itself answers: one table of codes with their statuses and texts. The
 * providers' files say what each looks like in their dialect. No text holds anything that an upstream or a client sent.
 */
import type { ServerResponse } from 'node:http';
import type { Provider } from './provider.ts';

/** A failure, ready to be put into a dialect. */
export interface Failure {
  readonly status: number;
  readonly code: string;
  readonly message: string;
}

interface Row {
  readonly status: number;
  readonly message: string;
  /** `false` stops the official SDKs, which would otherwise repeat a 5xx by themselves. */
  readonly shouldRetry?: false;
  readonly retryAfterSeconds?: number;
}

const FAILURES = {
  route_unknown: {
    status: 404,
    shouldRetry: false,
    message: 'KeyGuard knows no such route: the path must begin exactly as the documentation spells it.',
  },
  method_not_allowed: {
    status: 405,
    shouldRetry: false,
    message: 'KeyGuard hands on GET, HEAD, POST, PUT, PATCH and DELETE only.',
  },
  upload_unsupported: {
    status: 501,
    shouldRetry: false,
    message: 'KeyGuard hands on no resumable uploads: send the data inside the request (inline), or upload it without KeyGuard and refer to it.',
  },
  upgrade_unsupported: {
    status: 501,
    shouldRetry: false,
    message: 'KeyGuard hands on no WebSockets and no other upgrades: use the HTTP form of this call, with server-sent events.',
  },
  budget_exceeded: { status: 429, message: 'A budget has no room for this call.' },
  price_unknown: { status: 403, shouldRetry: false, message: 'A budget in money binds this device, and the prices of this provider are not known.' },
  usage_untold: {
    status: 403,
    shouldRetry: false,
    message: 'A budget of tokens or money binds this device, and the answer to this call does not tell what it uses: a batch, a call in the background, or one that KeyGuard does not know. Call without them, or ask an administrator for a budget of requests.',
  },
  provider_key_missing: { status: 403, shouldRetry: false, message: 'This device may use no key of this provider.' },
  provider_key_expired: {
    status: 403,
    shouldRetry: false,
    message: "The key with which this device's project calls the provider has expired: an administrator must rotate it, or give it another date.",
  },
  provider_key_unplaced: {
    status: 403,
    shouldRetry: false,
    message: "The address for which this project's key was stored is not among those that the operator allows: nothing was sent there.",
  },
  deployment_not_allowed: {
    status: 403,
    shouldRetry: false,
    message: "This project's key is for calls of one deployment, and this is none of them.",
  },
  model_not_allowed: {
    status: 403,
    shouldRetry: false,
    message: 'This device is held to a list of models, and this call is for another one, or for something that names no model.',
  },
  model_ambiguous: {
    status: 400,
    shouldRetry: false,
    message: 'This device is held to a list of models, so its calls must name one model, once, in a JSON body or a form that leaves no doubt.',
  },
  service_unavailable: {
    status: 503,
    retryAfterSeconds: 1,
    message: 'KeyGuard cannot decide right now, so nothing was sent to the provider. Try again shortly.',
  },
  service_stopping: { status: 503, retryAfterSeconds: 1, message: 'This KeyGuard server is stopping. Try again.' },
  device_cut_off: {
    status: 403,
    shouldRetry: false,
    message: 'This device may no longer call, so its running call was ended.',
  },
  device_unvouched: {
    status: 503,
    retryAfterSeconds: 1,
    message: 'KeyGuard can no longer tell whether this device may call, so its running call was ended. Try again.',
  },
  internal_error: {
    status: 500,
    shouldRetry: false,
    message: 'KeyGuard failed on this request; its operator finds the reason in the log.',
  },
  upstream_unreachable: { status: 502, message: 'The provider could not be reached.' },
  upstream_timeout: { status: 504, message: 'The provider did not answer in time.' },
  upstream_broken: { status: 502, message: 'The provider broke off its answer before the end.' },
  upstream_redirect: {
    status: 502,
    shouldRetry: false,
    message: 'The provider answered with a redirect, which KeyGuard never follows: the operator must correct the base URL.',
  },
  upstream_invalid: { status: 502, shouldRetry: false, message: 'The provider answered in a form that KeyGuard does not hand on.' },
  upstream_key_refused: {
    status: 502,
    shouldRetry: false,
    message: "The provider refused KeyGuard's own key for it: an administrator must replace that key.",
  },
  upstream_event_too_long: {
    status: 502,
    shouldRetry: false,
    message: 'The provider sent an event that is longer than KeyGuard hands on.',
  },
  call_too_long: { status: 504, shouldRetry: false, message: 'The call ran longer than this KeyGuard server allows.' },
} as const satisfies Record<string, Row>;

export type FailureCode = keyof typeof FAILURES;

/** The failure of that code; `message` where the table's text can be said more exactly. */
export function failure(code: FailureCode, message?: string): Failure & { readonly code: FailureCode } {
  const { status, message: text } = FAILURES[code];
  return { status, code, message: message ?? text };
}

/** Answers `failed` in the provider's dialect. Only for a response whose head has not been sent. */
export function sendFailure(response: ServerResponse, provider: Provider, failed: Failure & { readonly code: FailureCode }): void {
  const { shouldRetry, retryAfterSeconds }: Row = FAILURES[failed.code];
  if (shouldRetry === false) response.setHeader('x-should-retry', 'false');
  if (retryAfterSeconds !== undefined) response.setHeader('retry-after', String(retryAfterSeconds));
  response.setHeader('cache-control', 'no-store');
  sendErrorBody(response, provider, failed);
}

/** Ends `response` with the provider's form of `failed`; status 4xx or 5xx. Headers that were set before stay. */
export function sendErrorBody(response: ServerResponse, provider: Provider, failed: Failure): void {
  const body = Buffer.from(provider.errorBody(failed));
  response.writeHead(failed.status, { 'content-type': 'application/json; charset=utf-8', 'content-length': body.length });
  response.end(body);
}
