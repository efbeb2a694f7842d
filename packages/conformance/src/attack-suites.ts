export * from './attacks.ts';
export * from './enrollment.ts';
export * from './rotation.ts';
