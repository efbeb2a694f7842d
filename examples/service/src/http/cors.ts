/**
 * Which pages may call the routes that a signature guards. The allowlist is exact, and no credentials of the browser are ever
 * asked for: the signature is the credential. `OPTIONS` is answered here, before anything is verified.
 */
import type { RequestHandler } from 'express';
import { writeProblem } from './problems.ts';

// Those that the official SDKs read: when to come again, whether to, and by which name a call can be asked about.
const EXPOSED = [
  'x-request-id', 'x-upstream-request-id', 'request-id', 'x-keyguard-time', 'x-keyguard-next-challenge', 'x-keyguard-overhead-ms',
  'retry-after', 'retry-after-ms', 'x-should-retry', 'ratelimit', 'ratelimit-policy', 'openai-processing-ms', 'openai-version',
].join(', ');
const METHODS = 'GET, HEAD, POST, PUT, PATCH, DELETE';
const HEADER_LIST = /^[A-Za-z0-9-]{1,64}(?:[\t ]*,[\t ]*[A-Za-z0-9-]{1,64}){0,63}$/;

/** @param allowedOrigins trusted */
export function signedRoutesCors(allowedOrigins: ReadonlySet<string>): RequestHandler {
  return (request, response, next) => {
    const { origin } = request.headers;
    response.vary('Origin');
    const isAllowed = origin !== undefined && allowedOrigins.has(origin);
    if (isAllowed) {
      response.set('access-control-allow-origin', origin);
      response.set('access-control-expose-headers', EXPOSED);
    }
    if (request.method !== 'OPTIONS') {
      next();
      return;
    }
    if (origin !== undefined && !isAllowed) {
      const detail = 'Pages of this origin may not call: the operator can add it to KEYGUARD_ALLOWED_ORIGINS.';
      writeProblem(request, response, { status: 403, title: 'Origin not allowed', detail, code: 'origin_not_allowed' });
      return;
    }
    const wanted = request.headers['access-control-request-headers'];
    response.vary('Access-Control-Request-Headers');
    if (isAllowed && request.headers['access-control-request-method'] !== undefined) {
      response.set('access-control-allow-methods', METHODS);
      response.set('access-control-max-age', '600');
      // SDKs send a dozen headers of their own. Which of them count is the verifier's to say, and it refuses the rest.
      if (wanted !== undefined && HEADER_LIST.test(wanted)) response.set('access-control-allow-headers', wanted);
    }
    response.set('allow', `${METHODS}, OPTIONS`).status(204).end();
  };
}
