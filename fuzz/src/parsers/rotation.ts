/** `rotation`: stored states, against the invariants of docs/spec/rotation.md; and what is then decided over the states that passed. */
import { apply, decide, parseRotationState, rotationStart, usableVersions, VERSION_STATES, type RotationPolicy, type RotationState, type RotationStep } from '@keyguard/core/rotation';
import type { JsonValue } from '@keyguard/core/seams';
import type { Generator } from '../generator.ts';
import { mutateJson } from '../mutate.ts';
import { agree, demand, demandEqual, outcomeOf, type Parser } from '../parser.ts';

const NOW_MS = 1_780_000_000_000;
const DAY_MS = 86_400_000;
const POLICY: RotationPolicy = {
  intervalMs: 30 * DAY_MS,
  maxAgeMs: 60 * DAY_MS,
  maxUses: 1000,
  events: [{ event: 'manual', overlapMs: DAY_MS }, { event: 'compromised', overlapMs: 0 }],
  overlapMs: 2 * DAY_MS,
  destroyAfterMs: 7 * DAY_MS,
  retryAfterMs: 60_000,
};
const POLICIES: readonly RotationPolicy[] = [POLICY, { ...POLICY, intervalMs: null, maxAgeMs: null, maxUses: null, destroyAfterMs: null, overlapMs: 0 }];

const STEPS = ['begun', 'created', 'verified', 'activated', 'retired', 'destroyed', 'failed', 'used', 'requested'] as const;

function step(random: Generator, version: number): RotationStep {
  const name = random.pick(STEPS);
  if (name === 'used') return { step: name, version, uses: random.below(2000) };
  return name === 'requested' ? { step: name, version, event: random.pick(['manual', 'compromised', 'unknown']) } : { step: name, version };
}

/** A state as a life of steps makes it, with `count` steps that were not refused. */
function grow(random: Generator, count: number): RotationState {
  let state = rotationStart();
  let nowMs = NOW_MS;
  for (let i = 0; i < count; i += 1) {
    nowMs += random.below(DAY_MS * 3);
    const version = Math.max(1, state.lastVersion + random.pick([0, 0, 1, 1, -1]));
    const pending = state.versions.at(-1);
    const next: RotationStep = pending !== undefined && !random.oneIn(3) ? { step: pending.state === 'creating' ? 'created' : pending.state === 'created' ? 'verified' : 'activated', version: pending.version } : step(random, version);
    const outcome = outcomeOf(() => apply(random.pick(POLICIES), state, next, nowMs), 'UsageError rotation_step_refused');
    if (outcome.accepted) state = outcome.value;
  }
  return state;
}

type Members = Readonly<Record<string, JsonValue>>;
const isCount = (value: unknown): value is number => typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
const has = (value: JsonValue | undefined, names: string): value is Members =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && Object.keys(value).toSorted().join() === names;

const YEAR_10000_MS = Date.UTC(10_000, 0, 1);
const isMoment = (value: unknown): value is number => isCount(value) && value < YEAR_10000_MS;
const isEnd = (value: unknown): value is number => isCount(value) && value < YEAR_10000_MS + 36_525 * DAY_MS;

/** The moments that a version of this state must have, and may have. */
function isVersion(value: JsonValue): boolean {
  if (!has(value, 'activatedAtMs,createdAtMs,overlapUntilMs,retiredAtMs,state,version')) return false;
  const { version, state, createdAtMs, activatedAtMs, overlapUntilMs, retiredAtMs } = value;
  const at = (VERSION_STATES as readonly unknown[]).indexOf(state);
  if (!isCount(version) || version < 1 || at < 0 || !isMoment(createdAtMs)) return false;
  const order = [createdAtMs, activatedAtMs, state === 'active' ? null : overlapUntilMs];
  if (at < 3) return activatedAtMs === null && overlapUntilMs === null && retiredAtMs === null;
  if (state === 'active') return isMoment(activatedAtMs) && activatedAtMs >= createdAtMs && overlapUntilMs === null && retiredAtMs === null;
  const wasActive = isMoment(activatedAtMs) && activatedAtMs >= createdAtMs && isEnd(overlapUntilMs) && overlapUntilMs >= activatedAtMs;
  if (state === 'overlap') return wasActive && retiredAtMs === null;
  const gaveUp = activatedAtMs === null && overlapUntilMs === null;
  return (wasActive || gaveUp) && isMoment(retiredAtMs) && retiredAtMs >= (wasActive ? (order[1] as number) : createdAtMs);
}

function isState(value: JsonValue): boolean {
  if (!has(value, 'lastVersion,request,retryAtMs,uses,versions')) return false;
  const { lastVersion, request, retryAtMs, uses, versions } = value;
  if (!isCount(lastVersion) || !isCount(uses) || !(retryAtMs === null || isEnd(retryAtMs)) || !Array.isArray(versions)) return false;
  const list = versions as readonly JsonValue[];
  if (!list.every(isVersion)) return false;
  const rows = list as unknown as RotationState['versions'];
  if (rows.some(({ version }, i) => version <= (rows[i - 1]?.version ?? 0) || version > lastVersion)) return false;
  const active = rows.filter(({ state }) => state === 'active');
  const served = rows.filter(({ activatedAtMs }) => activatedAtMs !== null);
  if (active.length > 1 || served.at(-1) !== active[0]) return false;
  if (rows.some(({ state, version }) => ['creating', 'created', 'verified'].includes(state) && version !== lastVersion)) return false;
  const isRequest = has(request, 'event,requestedAtMs') && typeof request['event'] === 'string' && /^[a-z][a-z0-9_]{0,63}$/.test(request['event']) && isMoment(request['requestedAtMs']);
  return (request === null || isRequest) && (active.length === 1 || (request === null && uses === 0));
}

/** What holds of any valid state, whatever is then asked of it. */
function demandSense(random: Generator, state: RotationState): void {
  const policy = random.pick(POLICIES);
  const nowMs = random.pick([0, NOW_MS, NOW_MS + 100 * DAY_MS, 253_402_300_799_999]);
  const { due, nextMs } = decide(policy, state, nowMs);
  demand(new Set(due.map(({ version }) => version)).size === due.length, 'two actions for one version');
  demand(nextMs === null || (Number.isFinite(nextMs) && nextMs > nowMs), 'the next moment is not ahead');
  const usable = usableVersions(state, nowMs);
  const active = state.versions.find((version) => version.state === 'active');
  demand(active === undefined ? usable.length === 0 : usable[0] === active.version, 'the active version is not the first to use');
  const next = step(random, Math.max(1, state.lastVersion + random.pick([0, 1])));
  const outcome = outcomeOf(() => apply(policy, state, next, nowMs), 'UsageError rotation_step_refused');
  if (outcome.accepted) demandEqual(JSON.stringify(parseRotationState(JSON.parse(JSON.stringify(outcome.value)))), JSON.stringify(outcome.value), 'the state after a step');
}

export const ROTATION: readonly Parser[] = [
  {
    name: 'rotation.parseRotationState',
    try(random) {
      let value = JSON.parse(JSON.stringify(grow(random, random.below(14)))) as JsonValue;
      for (let left = random.pick([0, 1, 1, 2]); left > 0; left -= 1) value = mutateJson(random, value);
      const outcome = outcomeOf(() => parseRotationState(value), 'RejectedError rotation_state_invalid');
      if (outcome.accepted) {
        demandEqual(outcome.value, value, 'the state');
        demandSense(random, outcome.value);
      }
      return agree(outcome.accepted, isState(value));
    },
  },
];
