/**
 * The routes that a device itself calls: `POST /enroll`, `GET /status`, `GET /time`. Mount it where the client's `basePath`
 * points, by default `/api/keyguard`.
 */
import { Router, type Response } from 'express';
import type { Device } from '@keyguard/core/seams';
import type { Enrollment, Verifier } from '@keyguard/server-verifier';
import { keyguard, receiver, refuse, sendProblem, verifiedRequest, type RejectionSender } from './middleware.ts';

export interface EnrollmentRouterOptions {
  readonly verifier: Verifier;
  readonly enrollment: Enrollment;
  /** Writes refusals in another form than problem+json. Status and headers of the answer MUST be kept. */
  readonly sendRejection?: RejectionSender;
}

export function enrollmentRouter({ verifier, enrollment, sendRejection = sendProblem }: EnrollmentRouterOptions): Router {
  const router = Router({ caseSensitive: true, strict: true });
  const receive = receiver(verifier.policy);

  router.post('/enroll', async (request, response, next) => {
    try {
      sendDevice(response, 201, await receive(request, (incoming) => enrollment.enroll(incoming)));
    } catch (error) {
      refuse(error, enrollment, sendRejection, request, response, next);
    }
  });

  router.get('/status', keyguard(verifier, { insecureAnyStatus: true, sendRejection }), (request, response) => {
    sendDevice(response, 200, verifiedRequest(request).device, Math.floor(verifier.nowMs() / 1000));
  });

  router.get('/time', (_request, response) => {
    response.set('cache-control', 'no-store').json({ server_time: Math.floor(verifier.nowMs() / 1000) });
  });

  return router;
}

function sendDevice(response: Response, status: number, device: Device, serverTime?: number): void {
  const { deviceId, keyId } = device;
  response
    .status(status)
    .set('cache-control', 'no-store')
    .json({ device_id: deviceId, key_id: keyId, status: device.status, server_time: serverTime });
}
