/**
 * Every interface behind which something remembers, computes or tells the time. Types only: this file emits no code.
 *
 * An implementation that cannot keep a MUST below throws; it never answers with a guess. Whoever calls a seam treats any
 * exception, any time-out and any answer of another type as a refusal. A verb that threw may have acted all the same, whole: an
 * answer can be lost after the deed.
 */
export type * from './seams-audit.ts';
export type * from './seams-devices.ts';
export type * from './seams-keys.ts';
export type * from './seams-vault.ts';
