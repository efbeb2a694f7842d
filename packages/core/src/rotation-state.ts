/**
 * What a rotation remembers: the versions of one secret or key, and how far the next one is. Plain data that is its own JSON.
 *
 * Reached by way of `@keyguard/core/rotation`. This room only says what a state may look like; `rotation.ts` moves it.
 *
 * @see docs/spec/rotation.md
 */
import { RejectedError } from './errors.ts';

/**
 * In the order in which a version goes through them. The first three are not in use yet, `active` and `overlap` are, the last
 * two never again.
 */
export const VERSION_STATES = ['creating', 'created', 'verified', 'active', 'overlap', 'retired', 'destroyed'] as const;

/** How far a version has come: one of {@link VERSION_STATES}. */
export type VersionState = (typeof VERSION_STATES)[number];

/** One version of the secret or key, with the moments of its state and no others. */
export interface RotationVersion {
  /** From 1 on; never given twice. */
  readonly version: number;
  readonly state: VersionState;
  /** When its creation began, Unix milliseconds. Its age counts from here. */
  readonly createdAtMs: number;
  /** When it became the active one; `null` until then, and for ever where it failed before. */
  readonly activatedAtMs: number | null;
  /** Until when it may be used beside its successor; `null` while it is active. */
  readonly overlapUntilMs: number | null;
  /** When it was taken out of use, or given up. */
  readonly retiredAtMs: number | null;
}

/** That the active version be replaced whatever its age, because of something that happened. */
export interface RotationRequest {
  readonly event: string;
  readonly requestedAtMs: number;
}

/** All that is remembered of one rotation. */
export interface RotationState {
  /** The highest number that any version ever had. */
  readonly lastVersion: number;
  /** By ascending number. Destroyed versions MAY be left out when a state is stored. */
  readonly versions: readonly RotationVersion[];
  /** How often the active version was used, as far as it was recorded. */
  readonly uses: number;
  readonly request: RotationRequest | null;
  /** Before this moment no new version is begun, because the last one failed. */
  readonly retryAtMs: number | null;
}

/** The state of a rotation that has no version yet. */
export function rotationStart(): RotationState {
  return { lastVersion: 0, versions: [], uses: 0, request: null, retryAtMs: null };
}

/** The last moment that can be recorded: the end of the year 9999, Unix milliseconds. */
export const MAX_TIME_MS = 253_402_300_799_999;
/** The longest time that a policy can name, in milliseconds: a hundred years. */
export const MAX_ROTATION_SPAN_MS = 3_155_760_000_000;

const EVENT = /^[a-z][a-z0-9_]{0,63}$/;

/** Whether `value` can name an event: 1 to 64 lower-case letters, digits and underscores, a letter first. */
export function isEventName(value: unknown): value is string {
  return typeof value === 'string' && EVENT.test(value);
}

/** Whether `value` is an integer from 0 to 2⁵³ − 1: a count, or a moment. */
export function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}

// Something happened then; `apply` records no later moment.
const isMoment = (value: unknown): value is number => isCount(value) && value <= MAX_TIME_MS;
// Something ends then: a span of the policy after a moment.
const isEnd = (value: unknown): value is number => isCount(value) && value <= MAX_TIME_MS + MAX_ROTATION_SPAN_MS;

/** Whether the version is on its way to become active. */
export function isPending({ state }: RotationVersion): boolean {
  return state === 'creating' || state === 'created' || state === 'verified';
}

function invalid(detail: string): RejectedError {
  return new RejectedError('rotation_state_invalid', 'The stored state of a rotation is not a valid one.', { detail });
}

type Members = Readonly<Record<string, unknown>>;

function members(value: unknown, names: string, what: string): Members {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid(`${what} is not an object`);
  if (Object.keys(value).toSorted().join() !== names) throw invalid(`${what} must have exactly the members ${names}`);
  return value as Members;
}

function readVersion(value: unknown): RotationVersion {
  const given = members(value, 'activatedAtMs,createdAtMs,overlapUntilMs,retiredAtMs,state,version', 'a version');
  const { version, state, createdAtMs, activatedAtMs, overlapUntilMs, retiredAtMs } = given as unknown as RotationVersion;
  if (!isCount(version) || version === 0) throw invalid('the number of a version');
  if (!VERSION_STATES.includes(state)) throw invalid('the state of a version');
  const left = state === 'retired' || state === 'destroyed';
  // One that was given up has neither been active nor overlapped.
  const served = state === 'active' || state === 'overlap' || (left && activatedAtMs !== null);
  const overlapped = served && state !== 'active';
  const fits =
    isMoment(createdAtMs) &&
    (served ? isMoment(activatedAtMs) && activatedAtMs >= createdAtMs : activatedAtMs === null) &&
    (overlapped ? isEnd(overlapUntilMs) && overlapUntilMs >= activatedAtMs! : overlapUntilMs === null) &&
    (left ? isMoment(retiredAtMs) && retiredAtMs >= (activatedAtMs ?? createdAtMs) : retiredAtMs === null);
  if (!fits) throw invalid(`the moments of version ${version}`);
  return { version, state, createdAtMs, activatedAtMs, overlapUntilMs, retiredAtMs };
}

function readRequest(value: unknown): RotationRequest | null {
  if (value === null) return null;
  const { event, requestedAtMs } = members(value, 'event,requestedAtMs', 'the request');
  if (!isEventName(event) || !isMoment(requestedAtMs)) throw invalid('the request');
  return { event, requestedAtMs };
}

/**
 * The state that `value` is, checked whole: no moment lies after the year 9999 (no end a hundred years after that), numbers ascend, at most one version is pending and it is the newest, exactly one is
 * active once one ever was, and each has the moments of its state and no others.
 *
 * @param value untrusted: parsed JSON, or put together from the rows of a table
 * @throws RejectedError `rotation_state_invalid`
 */
export function parseRotationState(value: unknown): RotationState {
  const given = members(value, 'lastVersion,request,retryAtMs,uses,versions', 'the state');
  const { lastVersion, uses, retryAtMs } = given;
  if (!isCount(lastVersion)) throw invalid('lastVersion');
  if (!isCount(uses)) throw invalid('uses');
  if (retryAtMs !== null && !isEnd(retryAtMs)) throw invalid('retryAtMs');
  if (!Array.isArray(given['versions'])) throw invalid('versions is not an array');
  const versions = given['versions'].map(readVersion);
  let newest = 0;
  let active = 0;
  let served = 0;
  for (const { version, state, activatedAtMs } of versions) {
    if (version <= newest) throw invalid('the numbers do not ascend');
    newest = version;
    if (activatedAtMs !== null) served = version;
    if (state !== 'active') continue;
    if (active > 0) throw invalid('two versions are active');
    active = version;
  }
  if (newest > lastVersion) throw invalid('lastVersion is not the last');
  if (active !== served) throw invalid('the newest version that was in use is not active');
  if (versions.some((version) => isPending(version) && version.version !== lastVersion)) {
    throw invalid('a version is pending that is not the newest');
  }
  const request = readRequest(given['request']);
  if (active === 0 && (request !== null || uses > 0)) throw invalid('nothing is active that could be used or replaced');
  return { lastVersion, versions, uses, request, retryAtMs };
}
