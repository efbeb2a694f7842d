export { createVerifier, type IncomingRequest, type RejectionEvent, type VerifiedRequest, type Verifier, type VerifierOptions, type VerifyOptions } from './verifier.ts';
export { createEnrollment, type Enrollment, type EnrollmentOptions } from './enrollment.ts';
export { generateEnrollmentCode, hashEnrollmentCode } from './enrollment-code.ts';
export { definePolicy, type Policy, type PolicyOptions } from './policy.ts';
export { describeRejection, type Problem, type RejectionAnswer } from './rejection.ts';
export { memoryRateLimiter, rateLimiter, type MemoryRateLimiterOptions } from './limits.ts';
export { ipBucket, ipMatcher, type IpMatcher } from './ip.ts';
export { nodePrimitives } from './node-primitives.ts';
