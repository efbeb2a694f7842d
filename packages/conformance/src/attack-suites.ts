export * from './attacks.ts';
export * from './enrollment.ts';
