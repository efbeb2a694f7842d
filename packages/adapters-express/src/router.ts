/**
 * The routes that a device itself calls, for Express: those of `deviceRoutes`. Mount it where the client's `basePath` points, by
 * default `/api/keyguard`.
 */
import { Router } from 'express';
import { messageReceiver } from '@keyguard/server-verifier/node';
import { deviceRoutes, type DeviceRoutesOptions } from '@keyguard/server-verifier/routes';
import { factsOf, refuse, sendProblem, type RejectionSender } from './middleware.ts';

/** The recipes behind the routes, and how refusals are written. */
export interface EnrollmentRouterOptions extends DeviceRoutesOptions {
  /** Writes refusals in another form than problem+json. Status and headers of the answer MUST be kept. */
  readonly sendRejection?: RejectionSender;
}

/**
 * The routes that a device itself calls, as an Express router: mount it under the client's `basePath`, before any body parser. It
 * answers every
 * request on them by itself, and passes all others on.
 */
export function enrollmentRouter({ sendRejection = sendProblem, ...options }: EnrollmentRouterOptions): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const receive = messageReceiver(options.verifier.policy);
  for (const route of deviceRoutes(options)) {
    router[route.method === 'GET' ? 'get' : 'post'](route.path, async (request, response, next) => {
      try {
        const { status, headers, body } = await receive(request, factsOf(request), (incoming) => route.answer(incoming));
        response.status(status).set(headers).json(body);
      } catch (error) {
        refuse(error, route.clock, sendRejection, request, response, next);
      }
    });
  }
  return router;
}
