/**
 * The rotation of a secret or a key, as a policy and a state: what is to be done, why, and when to ask again.
 *
 * Once a version is active there is always exactly one, whatever step the work dies at: the version that takes over was verified
 * before, and the change is one step. Pure: this room makes no secret, stores nothing, reads no clock, and never says who works.
 * The caller does an action, which MUST bear being done twice, and then records the step in the transaction that stores its effect.
 *
 * @see docs/spec/rotation.md
 */
import { UsageError } from './errors.ts';
import { checkPolicy, type RotationPolicy } from './rotation-policy.ts';
import {
  isCount,
  isEventName,
  isPending,
  MAX_TIME_MS,
  VERSION_STATES,
  type RotationState,
  type RotationVersion,
  type VersionState,
} from './rotation-state.ts';

export type { RotationEvent, RotationPolicy } from './rotation-policy.ts';
export {
  MAX_ROTATION_SPAN_MS,
  parseRotationState,
  rotationStart,
  VERSION_STATES,
  type RotationRequest,
  type RotationState,
  type RotationVersion,
  type VersionState,
} from './rotation-state.ts';

/** What the caller can be asked to do to a version. */
export type RotationAction = 'create' | 'verify' | 'activate' | 'retire' | 'destroy';

/** Of the first four, the one that was true first; `begun`, `created` and `verified` name the step that was recorded last. */
export type RotationReason =
  | 'initial'
  | 'interval'
  | 'max_age'
  | 'max_uses'
  | 'event'
  | 'begun'
  | 'created'
  | 'verified'
  | 'overlap_ended'
  | 'retention_ended';

/** One thing to be done now, and why. */
export interface DueAction {
  readonly action: RotationAction;
  /** The number of the version that it is to be done to. */
  readonly version: number;
  readonly reason: RotationReason;
}

/** What {@link decide} answers. */
export interface RotationDecision {
  /** What is to be done now, at most one action for each version, the version in the making first. They do not depend on each other. */
  readonly due: readonly DueAction[];
  /** The next moment at which more is due, if no step is recorded until then; `null` for never. Unix milliseconds. */
  readonly nextMs: number | null;
}

/** A fact to be recorded: `version` has come so far. */
export type RotationStep =
  | { readonly step: 'begun' | 'created' | 'verified' | 'failed' | 'activated' | 'retired' | 'destroyed'; readonly version: number }
  /** `uses` is the whole number of uses of `version`, not how many more. */
  | { readonly step: 'used'; readonly version: number; readonly uses: number }
  /** `version` is the one to be replaced, so that a request that comes twice, or too late, replaces no other. */
  | { readonly step: 'requested'; readonly version: number; readonly event: string };

// A clock that steps back must not undo what was due, nor shorten an overlap: time never runs behind the last thing recorded.
function effectiveNow(state: RotationState, nowMs: number): number {
  if (!isCount(nowMs) || nowMs > MAX_TIME_MS) {
    throw new UsageError('invalid_option', 'nowMs must be an integer of milliseconds from 1970 to 9999.');
  }
  let latest = Math.max(nowMs, state.request?.requestedAtMs ?? 0);
  for (const { createdAtMs, activatedAtMs, retiredAtMs } of state.versions) {
    latest = Math.max(latest, createdAtMs, activatedAtMs ?? 0, retiredAtMs ?? 0);
  }
  return latest;
}

interface Candidate extends DueAction {
  readonly atMs: number;
}

/** When the rotation of the active version is due and why: the trigger that comes first. `null` for never. */
function trigger(policy: RotationPolicy, state: RotationState): { readonly reason: RotationReason; readonly atMs: number } | null {
  const active = state.versions.find((version) => version.state === 'active');
  if (active === undefined) return { reason: 'initial', atMs: 0 };
  const { intervalMs, maxAgeMs, maxUses, overlapMs } = policy;
  const activatedAtMs = active.activatedAtMs!;
  const triggers: { reason: RotationReason; atMs: number }[] = [];
  if (state.request !== null) triggers.push({ reason: 'event', atMs: state.request.requestedAtMs });
  if (maxUses !== null && state.uses >= maxUses) triggers.push({ reason: 'max_uses', atMs: activatedAtMs });
  if (maxAgeMs !== null) triggers.push({ reason: 'max_age', atMs: active.createdAtMs + maxAgeMs - overlapMs });
  if (intervalMs !== null) triggers.push({ reason: 'interval', atMs: activatedAtMs + intervalMs });
  return triggers.reduce<(typeof triggers)[number] | null>((first, next) => (first === null || next.atMs < first.atMs ? next : first), null);
}

function candidates(policy: RotationPolicy, state: RotationState): Candidate[] {
  const found: Candidate[] = [];
  const pending = state.versions.find(isPending);
  if (pending === undefined) {
    const first = trigger(policy, state);
    if (first !== null) {
      const atMs = Math.max(first.atMs, state.retryAtMs ?? 0);
      found.push({ action: 'create', version: state.lastVersion + 1, reason: first.reason, atMs });
    }
  }
  for (const { version, state: at, overlapUntilMs, retiredAtMs } of state.versions) {
    if (at === 'creating') found.unshift({ action: 'create', version, reason: 'begun', atMs: 0 });
    if (at === 'created') found.unshift({ action: 'verify', version, reason: 'created', atMs: 0 });
    if (at === 'verified') found.unshift({ action: 'activate', version, reason: 'verified', atMs: 0 });
    if (at === 'overlap') found.push({ action: 'retire', version, reason: 'overlap_ended', atMs: overlapUntilMs! });
    if (at === 'retired' && policy.destroyAfterMs !== null) {
      found.push({ action: 'destroy', version, reason: 'retention_ended', atMs: retiredAtMs! + policy.destroyAfterMs });
    }
  }
  return found;
}

/**
 * What is due at `nowMs`, and the next moment at which more will be. As long as no step is recorded and the policy stays, what is
 * due stays due, exactly nothing changes before `nextMs`, and something does at it.
 *
 * @param state from {@link rotationStart}, {@link apply} or {@link parseRotationState}
 * @param nowMs Unix milliseconds, to the end of the year 9999. MAY step back
 * @throws UsageError `invalid_option` for a policy or a time out of range
 */
export function decide(policy: RotationPolicy, state: RotationState, nowMs: number): RotationDecision {
  checkPolicy(policy);
  const now = effectiveNow(state, nowMs);
  const due: DueAction[] = [];
  let nextMs: number | null = null;
  for (const { action, version, reason, atMs } of candidates(policy, state)) {
    if (atMs <= now) due.push({ action, version, reason });
    else if (nextMs === null || atMs < nextMs) nextMs = atMs;
  }
  return { due, nextMs };
}

/**
 * The versions that may be used at `nowMs`, the active one first: it is always among them. Those in overlap follow, newest first,
 * until their overlap ends.
 *
 * A key under which something is still encrypted must stay readable for longer, until `retired` is recorded: go by its state.
 * @param nowMs Unix milliseconds, to the end of the year 9999
 * @throws UsageError `invalid_option` for a time out of range
 */
export function usableVersions(state: RotationState, nowMs: number): number[] {
  const now = effectiveNow(state, nowMs);
  return state.versions
    .filter(({ state: at, overlapUntilMs }) => at === 'active' || (at === 'overlap' && now < overlapUntilMs!))
    .map(({ version }) => version)
    .toReversed();
}

const rank = (state: VersionState): number => VERSION_STATES.indexOf(state);

function refused(step: RotationStep, at: VersionState | null): UsageError {
  const where = at === null ? 'is not the next one' : `is ${at}`;
  return new UsageError('rotation_step_refused', `The step "${step.step}" cannot follow: version ${step.version} ${where}.`);
}

function overlapOf(policy: RotationPolicy, event: string | undefined): number {
  return policy.events.find((named) => named.event === event)?.overlapMs ?? policy.overlapMs;
}

function replace(state: RotationState, changed: RotationVersion): RotationVersion[] {
  return state.versions.map((version) => (version.version === changed.version ? changed : version));
}

function add(state: RotationState, step: RotationStep, at: VersionState, nowMs: number): RotationState {
  const { version } = step;
  if (!isCount(version) || version !== state.lastVersion + 1 || state.versions.some(isPending)) throw refused(step, null);
  const added = { version, state: at, createdAtMs: nowMs, activatedAtMs: null, overlapUntilMs: null, retiredAtMs: null };
  return { ...state, lastVersion: version, versions: [...state.versions, added], retryAtMs: null };
}

function activate(policy: RotationPolicy, state: RotationState, version: RotationVersion, nowMs: number): RotationState {
  const versions = replace(state, { ...version, state: 'active', activatedAtMs: nowMs }).map((other) => {
    if (other.state !== 'active' || other.version === version.version) return other;
    const endMs = nowMs + overlapOf(policy, state.request?.event);
    const limitMs = policy.maxAgeMs === null ? endMs : Math.max(nowMs, other.createdAtMs + policy.maxAgeMs);
    return { ...other, state: 'overlap' as const, overlapUntilMs: Math.min(endMs, limitMs) };
  });
  return { ...state, versions, uses: 0, request: null };
}

function request(policy: RotationPolicy, state: RotationState, event: string, nowMs: number): RotationState {
  if (!isEventName(event)) throw new UsageError('invalid_option', 'An event is named by lower-case letters, digits and underscores.');
  if (!policy.events.some((named) => named.event === event)) return state;
  const before = state.request;
  const isStronger = before === null || overlapOf(policy, event) < overlapOf(policy, before.event);
  if (!isStronger && state.retryAtMs === null) return state;
  return { ...state, request: isStronger ? { event, requestedAtMs: nowMs } : before, retryAtMs: null };
}

/**
 * The state after `step`, which has happened. The very same object where the step was recorded before, or where the version has
 * gone further since: recording a step twice, after a crash for instance, changes nothing.
 *
 * Records facts and does not ask whether they were due, so that a person may rotate, retire or destroy early. Refuses what would
 * leave no version active, or two, or would put a version into use that was not verified.
 *
 * The caller MUST hold the state (a locked row, or a compare-and-set) from reading it to storing the answer.
 *
 * @param state from {@link rotationStart}, {@link apply} or {@link parseRotationState}
 * @param nowMs Unix milliseconds, to the end of the year 9999. MAY step back
 * @throws UsageError `rotation_step_refused` for a step that cannot follow; `invalid_option` for a policy or a value out of range
 */
export function apply(policy: RotationPolicy, state: RotationState, step: RotationStep, nowMs: number): RotationState {
  checkPolicy(policy);
  const now = effectiveNow(state, nowMs);
  const version = state.versions.find((one) => one.version === step.version);
  if (version === undefined) {
    // What is not listed any more was destroyed.
    if (isCount(step.version) && step.version > 0 && step.version <= state.lastVersion) return state;
    if (step.step === 'begun') return add(state, step, 'creating', now);
    if (step.step === 'created') return add(state, step, 'created', now);
    throw refused(step, null);
  }
  const at = version.state;
  const to = (next: VersionState): RotationState => ({ ...state, versions: replace(state, { ...version, state: next }) });
  switch (step.step) {
    case 'begun':
      return state;
    case 'created':
      return at === 'creating' ? to('created') : state;
    case 'verified':
      if (at === 'creating') throw refused(step, at);
      return at === 'created' ? to('verified') : state;
    case 'failed': {
      if (!isPending(version)) {
        if (version.activatedAtMs !== null) throw refused(step, at);
        return state;
      }
      const versions = replace(state, { ...version, state: 'retired', retiredAtMs: now });
      return { ...state, versions, retryAtMs: now + policy.retryAfterMs };
    }
    case 'activated':
      if (version.activatedAtMs !== null) return state;
      if (at !== 'verified') throw refused(step, at);
      return activate(policy, state, version, now);
    case 'retired':
      if (rank(at) < rank('overlap')) throw refused(step, at);
      if (at !== 'overlap') return state;
      return { ...state, versions: replace(state, { ...version, state: 'retired', retiredAtMs: now }) };
    case 'destroyed':
      if (rank(at) < rank('retired')) throw refused(step, at);
      return at === 'retired' ? to('destroyed') : state;
    case 'used':
      if (!isCount(step.uses)) throw new UsageError('invalid_option', 'uses must be an integer from 0 on.');
      return at === 'active' && step.uses > state.uses ? { ...state, uses: step.uses } : state;
    case 'requested':
      if (isPending(version)) throw refused(step, at);
      return at === 'active' ? request(policy, state, step.event, now) : state;
  }
}
