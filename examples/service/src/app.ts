/**
 * The routes in order: the map of the service. What runs before what is decided here and nowhere else.
 */
import { IncomingMessage, ServerResponse } from 'node:http';
import { Socket } from 'node:net';
import express, { type Express, type RequestHandler, type Router } from 'express';
import helmet from 'helmet';
import { enrollmentRouter, keyguard, verifiedRequest } from '@keyguard/adapters-express';
import type { Enrollment, Rotation, Verifier } from '@keyguard/server-verifier';
import type { Authenticate } from './auth/principal.ts';
import { controlPlaneDoor } from './http/control-plane-door.ts';
import { apiDocs } from './http/api-docs.ts';
import { signedRoutesCors } from './http/cors.ts';
import { errorProblems, routeNotFound, sendRejectionProblem } from './http/problems.ts';
import { refusalsOnRecord, type Refusal } from './http/refusals.ts';
import { requestContext } from './http/request-context.ts';
import type { RouteHead } from './llm/body-limits.ts';
import type { LlmProxy } from './llm/routes.ts';

export interface AppOptions {
  readonly trustedHops: number;
  readonly allowedOrigins: ReadonlySet<string>;
  readonly isSecure: boolean;
  /** The `host[:port]` values of the control plane. */
  readonly authorities: readonly string[];
  /** From which addresses the control plane may be used, now. */
  readonly controlPlaneAllowlist: () => readonly string[];
  readonly health: Router;
  readonly verifier: Verifier;
  readonly enrollment: Enrollment;
  readonly rotation: Rotation;
  readonly proxy: LlmProxy;
  /** How large the body of a call may be; never more than the verifier's policy lets in. */
  readonly maxBodyBytes: (head: RouteHead) => number;
  /** Sets who is calling, or throws. */
  readonly authenticate: Authenticate;
  /** On which somebody opens a one-time link: for people without a name here. */
  readonly linkPage: Router;
  /** The operations of the control plane. */
  readonly controlPlane: Router;
  readonly onSeen: (deviceId: string, ip: string | null) => void;
  /** Told of every refusal by the control plane before it leaves. Whatever it throws is answered in its place. */
  readonly onRefused: (refusal: Refusal) => Promise<void>;
  readonly onFault: (error: unknown, requestId: string) => void;
}

export function createApp(options: AppOptions): Express {
  const { verifier, enrollment, rotation, proxy, onSeen } = options;
  const app = express();
  app.set('case sensitive routing', true);
  app.set('strict routing', true);
  app.set('query parser', 'simple');
  app.set('etag', false);
  app.disable('x-powered-by');
  // How many proxies are ours: without one, X-Forwarded-For is a text that a client wrote.
  app.set('trust proxy', options.trustedHops);

  app.use(requestContext);
  app.use(securityHeaders(options.isSecure));

  // Signed by devices: the signature is the credential.
  const cors = signedRoutesCors(options.allowedOrigins);
  const seen: RequestHandler = (request, _response, next) => {
    onSeen(verifiedRequest(request).device.deviceId, request.ip ?? null);
    next();
  };
  // First, and in a router of its own, which compares the path once and not for each of its steps: most requests are for it.
  const proxied = express.Router({ caseSensitive: true, strict: true });
  proxied.use(cors, proxy.refuseUpgrades, keyguard(verifier, { sendRejection: proxy.sendRejection, maxBodyBytes: options.maxBodyBytes }), seen, proxy.handler);
  app.use(['/proxy', '/v1'], proxied);
  app.use('/api/keyguard', cors, enrollmentRouter({ verifier, enrollment, rotation, sendRejection: sendRejectionProblem }));

  app.use(options.health);

  // Used by people and their programs: a session or a token is the credential. Who comes by another name, or from another place, is
  // not even asked for one.
  app.use(controlPlaneDoor({ authorities: options.authorities, allowlist: options.controlPlaneAllowlist }));
  app.use(options.linkPage);
  app.use(apiDocs());
  app.use(options.controlPlane);
  // Which routes there are is in the API's document; which are not is said to those alone who are signed in.
  app.use('/api', async (request, _response, next) => {
    await options.authenticate(request);
    next();
  });

  app.use(routeNotFound);
  app.use(refusalsOnRecord(options.onRefused));
  app.use(errorProblems(options.onFault));
  return app;
}

/** What helmet sets is the same for all: it is asked once, because each of its dozen steps is a function for every request. */
function securityHeaders(isSecure: boolean): RequestHandler {
  const asked = new IncomingMessage(new Socket());
  const answered = new ServerResponse(asked);
  const set = helmet({
    contentSecurityPolicy: { useDefaults: false, directives: { 'default-src': ["'none'"], 'frame-ancestors': ["'none'"], 'base-uri': ["'none'"] } },
    strictTransportSecurity: isSecure,
  });
  set(asked, answered, (error) => {
    if (error !== undefined) throw error;
  });
  const headers = Object.entries(answered.getHeaders()) as readonly [string, string][];
  return (_request, response, next) => {
    for (const [name, value] of headers) response.setHeader(name, value);
    next();
  };
}
