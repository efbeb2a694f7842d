/**
 * The routes that a device itself calls, without a framework: `POST /enroll`, `POST /rotate`, `GET /status`, `GET /time`. A door
 * mounts each under the client's `basePath` and translates; what they answer is decided here, so that every door answers alike.
 *
 * @see docs/spec/request-signing.md, sections 11, 12 and 16
 */
import type { Device, KeyState } from '@keyguard/core/seams';
import type { Enrollment } from './enrollment.ts';
import type { IncomingRequest } from './recipe.ts';
import type { Rotation } from './rotation.ts';
import type { Verifier } from './verifier.ts';

const MAX_STATUS_BODY_BYTES = 4096;

/** The recipes behind the routes. */
export interface DeviceRoutesOptions {
  readonly verifier: Verifier;
  readonly enrollment: Enrollment;
  /** Left out: devices keep the key with which they enrolled, and there is no `/rotate`. */
  readonly rotation?: Rotation;
}

/** What is answered to a device: the status, the headers, and what becomes the JSON body. */
export interface DeviceAnswer {
  /** The HTTP status. */
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Readonly<Record<string, unknown>>;
}

/** One route that a device calls, for any framework to mount. */
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

/** All routes that a device itself calls: time, enrollment, status and, where there is a recipe for it, rotation. */
export function deviceRoutes({ verifier, enrollment, rotation }: DeviceRoutesOptions): readonly DeviceRoute[] {
  const routes: DeviceRoute[] = [
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
        const { device } = await verifier.verify(incoming, { insecureAnyStatus: true, maxBodyBytes: () => MAX_STATUS_BODY_BYTES });
        const nowMs = verifier.nowMs();
        return answered(200, { ...describe(device), key_state: keyStateAt(device, nowMs), server_time: seconds(nowMs) });
      },
    },
    {
      method: 'GET',
      path: '/time',
      clock: verifier,
      answer: async () => answered(200, { server_time: seconds(verifier.nowMs()) }),
    },
  ];
  if (rotation !== undefined) {
    routes.push({
      method: 'POST',
      path: '/rotate',
      clock: rotation,
      answer: async (incoming) => answered(200, describe(await rotation.rotate(incoming))),
    });
  }
  return routes;
}

function describe({ deviceId, keyId, status }: Device): Record<string, unknown> {
  return { device_id: deviceId, key_id: keyId, status };
}

/** A registry may keep a key as `retiring` past its end, when it is retired to everyone. */
function keyStateAt({ keyState, keyRetiresAtMs }: Device, nowMs: number): KeyState {
  return keyState === 'retiring' && (keyRetiresAtMs === null || nowMs >= keyRetiresAtMs) ? 'retired' : keyState;
}

const seconds = (ms: number): number => Math.floor(ms / 1000);

function answered(status: number, body: DeviceAnswer['body']): DeviceAnswer {
  return { status, headers: { 'cache-control': 'no-store' }, body };
}
