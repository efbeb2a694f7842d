export * from './audit-sink.ts';
export * from './device-changes.ts';
export * from './device-registry.ts';
export * from './key-store.ts';
export * from './replay-store.ts';
export type * from './substrate.ts';
