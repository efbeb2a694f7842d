/**
 * What a rotation goes by: when to replace a version, and how long what is replaced lives on. Reached by way of
 * `@keyguard/core/rotation`. This room says what a policy may be; `rotation.ts` follows it.
 *
 * @see docs/spec/rotation.md
 */
import { UsageError } from './errors.ts';
import { isCount, isEventName, MAX_ROTATION_SPAN_MS } from './rotation-state.ts';

/** Something that asks for a rotation at once. */
export interface RotationEvent {
  /** 1 to 64 lower-case letters, digits and underscores, a letter first; for instance `manual` or `compromised`. */
  readonly event: string;
  /** How long the version that it replaces may overlap: 0 for one that must not be used any more. */
  readonly overlapMs: number;
}

/** When to rotate. Nothing has a default: who writes a policy says all of it. */
export interface RotationPolicy {
  /** A version is replaced so long after it became active; `null` for never. */
  readonly intervalMs: number | null;
  /**
   * A version is out of use so long after its creation began, overlap included, as soon as there is a successor; `null` for no
   * limit. MUST be greater than `overlapMs`, and replacing it begins by as much earlier.
   */
  readonly maxAgeMs: number | null;
  /** A version is replaced once it was used so often; `null` for no limit. */
  readonly maxUses: number | null;
  readonly events: readonly RotationEvent[];
  /** How long a replaced version may still be used; 0 for not at all. */
  readonly overlapMs: number;
  /** A retired version is destroyed so much later; `null` to keep it. */
  readonly destroyAfterMs: number | null;
  /** After a version that failed the next one is begun no earlier than so much later. */
  readonly retryAfterMs: number;
}

const isSpan = (value: unknown): boolean => isCount(value) && value <= MAX_ROTATION_SPAN_MS;

function check(isRight: boolean, what: string): void {
  if (!isRight) throw new UsageError('invalid_option', `The rotation policy is not valid: ${what}.`);
}

/**
 * Whether every part of `policy` is there and in its range.
 * @throws UsageError `invalid_option`, which names the part
 */
export function checkPolicy(policy: RotationPolicy): void {
  const { intervalMs, maxAgeMs, maxUses, events, overlapMs, destroyAfterMs, retryAfterMs } = policy;
  check(isSpan(overlapMs), 'overlapMs must be an integer from 0 to a hundred years');
  check(intervalMs === null || (isSpan(intervalMs) && intervalMs > 0), 'intervalMs must be null or an integer from 1 to a hundred years');
  check(maxAgeMs === null || (isSpan(maxAgeMs) && maxAgeMs > overlapMs), 'maxAgeMs must be null or greater than overlapMs');
  check(maxUses === null || (isCount(maxUses) && maxUses > 0), 'maxUses must be null or a positive integer');
  check(destroyAfterMs === null || isSpan(destroyAfterMs), 'destroyAfterMs must be null or an integer from 0 to a hundred years');
  check(isSpan(retryAfterMs), 'retryAfterMs must be an integer from 0 to a hundred years');
  check(
    Array.isArray(events) && events.every(({ event, overlapMs: after }) => isEventName(event) && isSpan(after)),
    'events must each have a name and an overlapMs',
  );
  check(new Set(events.map(({ event }) => event)).size === events.length, 'an event stands twice in it');
}

