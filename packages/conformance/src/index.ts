/** One suite per seam, each a function to call at the top of a test file. */
export * from './audit-sink.ts';
export type { Evidence, Property } from './cases.ts';
export * from './device-changes.ts';
export * from './device-registry.ts';
export { injectFaults, type Faults, type FaultTexts, type Fullness, type InjectedFaults, type Substrate } from './faults.ts';
export type { KeyRotationSubject, RotationCodeWanted } from './key-rotation-steps.ts';
export * from './key-provider.ts';
export * from './key-records.ts';
export * from './key-store.ts';
export * from './rate-limiter.ts';
export * from './replay-store.ts';
