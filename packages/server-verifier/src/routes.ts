/**
 * The routes that a device itself calls, without a framework: `POST /enroll`, `GET /status`, `GET /time`. A door mounts each under
 * the client's `basePath` and translates; what they answer is decided here, so that every door answers alike.
 *
 * @see docs/spec/request-signing.md, sections 11 and 12
 */
import type { Device } from '@keyguard/core/seams';
import type { Enrollment } from './enrollment.ts';
import type { IncomingRequest } from './recipe.ts';
import type { Verifier } from './verifier.ts';

export interface DeviceRoutesOptions {
  readonly verifier: Verifier;
  readonly enrollment: Enrollment;
}

/** What is answered to a device: the status, the headers, and what becomes the JSON body. */
export interface DeviceAnswer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Readonly<Record<string, unknown>>;
}

export interface DeviceRoute {
  readonly method: 'GET' | 'POST';
  /** Below the client's `basePath`, and case-sensitive: `/enroll`. */
  readonly path: string;
  /** By which its refusals tell the time. */
  readonly clock: { nowMs(): number };
  /**
   * The answer to a device.
   * @throws RejectedError with a protocol code
   * @throws UnavailableError
   */
  answer(incoming: IncomingRequest): Promise<DeviceAnswer>;
}

export function deviceRoutes({ verifier, enrollment }: DeviceRoutesOptions): readonly DeviceRoute[] {
  const serverTime = (): number => Math.floor(verifier.nowMs() / 1000);
  return [
    {
      method: 'POST',
      path: '/enroll',
      clock: enrollment,
      answer: async (incoming) => answered(201, describe(await enrollment.enroll(incoming))),
    },
    {
      method: 'GET',
      path: '/status',
      clock: verifier,
      async answer(incoming) {
        const { device } = await verifier.verify(incoming, { insecureAnyStatus: true });
        return answered(200, { ...describe(device), server_time: serverTime() });
      },
    },
    {
      method: 'GET',
      path: '/time',
      clock: verifier,
      answer: async () => answered(200, { server_time: serverTime() }),
    },
  ];
}

function describe({ deviceId, keyId, status }: Device): Record<string, unknown> {
  return { device_id: deviceId, key_id: keyId, status };
}

function answered(status: number, body: DeviceAnswer['body']): DeviceAnswer {
  return { status, headers: { 'cache-control': 'no-store' }, body };
}
