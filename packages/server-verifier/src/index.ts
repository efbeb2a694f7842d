export { createVerifier, type IncomingRequest, type RejectionEvent, type VerifiedRequest, type Verifier, type VerifierOptions, type VerifyOptions } from './verifier.ts';
export { createEnrollment, type Enrollment, type EnrollmentOptions } from './enrollment.ts';
export { createRotation, type Rotation, type RotationOptions, type SelfRotationEvent } from './rotation.ts';
export { generateEnrollmentCode, hashEnrollmentCode } from './enrollment-code.ts';
export { generateRotationCode, hashRotationCode } from './rotation-code.ts';
export { definePolicy, type Policy, type PolicyOptions } from './policy.ts';
export { describeRejection, refusalOf, type Problem, type RejectionAnswer } from './rejection.ts';
export {
  memoryRateLimiter,
  rateLimiter,
  redisRateLimiter,
  type LimiterRedis,
  type MemoryRateLimiterOptions,
  type RedisRateLimiterOptions,
} from './limits.ts';
export { ipBucket, ipMatcher, type IpMatcher } from './ip.ts';
export { nodePrimitives } from './node-primitives.ts';
export { deviceRoutes, type DeviceAnswer, type DeviceRoute, type DeviceRoutesOptions } from './routes.ts';
export { bodyBudget, bodyBuffer, type BodyBudget, type BodyBuffer, type BodyLease, type Charge } from './body.ts';
export { messageReceiver, readRawBody, type MessageFacts, type MessageReceiver } from './node.ts';
export { fetchDevices, fetchDoor, problemResponse, type FetchDevicesOptions, type FetchDoor, type FetchDoorOptions, type FetchVerdict } from './fetch.ts';
export { cachedDeviceRegistry, type CachedDeviceRegistry, type CachedDeviceRegistryOptions } from './device-cache.ts';
export { watchDeviceChanges, type DeviceChangeListener, type DeviceWatch, type DeviceWatchOptions } from './device-watch.ts';
