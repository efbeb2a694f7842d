export { keyguard, sendProblem, verifiedRequest, type KeyguardMiddlewareOptions, type RejectionSender } from './middleware.ts';
export { enrollmentRouter, type EnrollmentRouterOptions } from './router.ts';
