/**
 * The door of an Express 5 application: lets verified requests through and answers all others. It translates and decides
 * nothing; what is verified is the original target and the raw bytes, whatever routers and proxies made of them.
 */
import type { NextFunction, Request, RequestHandler, Response } from 'express';
import { UsageError } from '@keyguard/core/errors';
import type { VerifiedRequest, Verifier, VerifyOptions } from '@keyguard/server-verifier';
import { messageReceiver, type MessageFacts } from '@keyguard/server-verifier/node';
import { refusalOf, type RejectionAnswer } from '@keyguard/server-verifier/rejection';

declare global {
  namespace Express {
    interface Request {
      /** The verified request; set by `keyguard()` and by nothing else. */
      keyguard?: VerifiedRequest;
    }
  }
}

/** Writes the answer to a refusal; the default is {@link sendProblem}. */
export type RejectionSender = (answer: RejectionAnswer, request: Request, response: Response) => void;

/** What {@link keyguard} may be told beside its verifier. None of it lets more through, but for `insecureAnyStatus`. */
export interface KeyguardMiddlewareOptions extends VerifyOptions {
  /** Answers refusals in another dialect than problem+json. Status and headers of the answer MUST be kept. */
  readonly sendRejection?: RejectionSender;
}

/**
 * Middleware that lets only verified requests through, with `request.keyguard` set and `request.body` the signed bytes (a
 * `Buffer`). Mount it before any body parser.
 * @throws UsageError `invalid_option` for what is no verifier
 */
export function keyguard(verifier: Verifier, options: KeyguardMiddlewareOptions = {}): RequestHandler {
  if (typeof verifier?.verify !== 'function') throw new UsageError('invalid_option', 'keyguard() needs the verifier of createVerifier().');
  const { sendRejection = sendProblem, ...verifyOptions } = options;
  const receive = messageReceiver(verifier.policy);
  return async (request, response, next) => {
    let verified: VerifiedRequest;
    try {
      verified = await receive(request, factsOf(request), (incoming) => verifier.verify(incoming, verifyOptions));
    } catch (error) {
      refuse(error, verifier, sendRejection, request, response, next);
      return;
    }
    request.keyguard = verified;
    const { body } = verified;
    request.body = Buffer.isBuffer(body) ? body : Buffer.from(body.buffer, body.byteOffset, body.byteLength);
    next();
  };
}

/** The verified request behind `request`. @throws UsageError `invalid_option` when `keyguard()` did not run before */
export function verifiedRequest(request: Request): VerifiedRequest {
  if (request.keyguard === undefined) throw new UsageError('invalid_option', 'Mount keyguard() before this handler.');
  return request.keyguard;
}

/** What Express knows of a message. Routers strip their mount path from `url`; the caller signed the original. */
export function factsOf(request: Request): MessageFacts {
  return { target: request.originalUrl, ip: addressOf(request) };
}

/** What `request.ip` says. Where no proxy is trusted, which is Express's default, without parsing headers that it then ignores. */
function addressOf(request: Request): string | null {
  return (request.app.enabled('trust proxy') ? request.ip : request.socket.remoteAddress) ?? null;
}

/** Answers a refusal; hands anything else (a mistake in the program) to Express. */
export function refuse(
  error: unknown,
  clock: { nowMs(): number },
  sendRejection: RejectionSender,
  request: Request,
  response: Response,
  next: NextFunction,
): void {
  if (response.headersSent || response.destroyed) return;
  const answer = refusalOf(error, clock, request.complete);
  if (answer === null) {
    next(error);
    return;
  }
  response.status(answer.status).set(answer.headers);
  sendRejection(answer, request, response);
}

/** RFC 9457 `application/problem+json`. */
export const sendProblem: RejectionSender = (answer, _request, response) => {
  response.type('application/problem+json').send(JSON.stringify(answer.problem));
};
