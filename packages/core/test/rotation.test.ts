import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { canonicalJson, parseCanonicalJson } from '../src/canonical-json.ts';
import type { RejectedError, UsageError } from '../src/errors.ts';
import {
  apply,
  decide,
  parseRotationState,
  rotationStart,
  usableVersions,
  type DueAction,
  type RotationDecision,
  type RotationPolicy,
  type RotationState,
  type RotationStep,
} from '../src/rotation.ts';
import type { JsonValue } from '../src/seams.ts';
import { utf8 } from '../src/bytes.ts';

interface VectorBase {
  tcId: number;
  comment: string;
  result: 'valid' | 'invalid';
  state: RotationState;
  nowMs: number;
}
interface DecideVector extends VectorBase {
  decision: RotationDecision;
  usable: number[];
}
interface ApplyVector extends VectorBase {
  step: RotationStep;
  after?: RotationState;
}
const vectors = JSON.parse(readFileSync(new URL('../../../vectors/rotation.json', import.meta.url), 'utf8')) as {
  numberOfTests: number;
  testGroups: (
    | { type: 'RotationDecide'; policy: RotationPolicy; tests: DecideVector[] }
    | { type: 'RotationApply'; policy: RotationPolicy; tests: ApplyVector[] }
    | { type: 'RotationParse'; tests: VectorBase[] }
  )[];
};

const DAY = 86_400_000;
const base: RotationPolicy = {
  intervalMs: 30 * DAY,
  maxAgeMs: null,
  maxUses: null,
  events: [{ event: 'manual', overlapMs: DAY }, { event: 'compromised', overlapMs: 0 }],
  overlapMs: DAY,
  destroyAfterMs: 7 * DAY,
  retryAfterMs: 3_600_000,
};
const T = 1_767_225_600_000;

function run(policy: RotationPolicy, state: RotationState, nowMs: number, ...steps: RotationStep[]): RotationState {
  return steps.reduce((before, step) => apply(policy, before, step, nowMs), state);
}
const made = (version: number): RotationStep[] =>
  (['begun', 'created', 'verified', 'activated'] as const).map((step) => ({ step, version }));
const stateOf = (state: RotationState, version: number): string | undefined =>
  state.versions.find((one) => one.version === version)?.state;
const first = run(base, rotationStart(), T, ...made(1));

describe('vectors', () => {
  test('are all there', () => {
    expect(vectors.testGroups.reduce((sum, { tests }) => sum + tests.length, 0)).toBe(vectors.numberOfTests);
  });
  for (const group of vectors.testGroups) {
    if (group.type === 'RotationDecide') {
      test.each(group.tests)('$tcId $comment', ({ state, nowMs, decision, usable }) => {
        expect(decide(group.policy, parseRotationState(state), nowMs)).toEqual(decision);
        expect(usableVersions(state, nowMs)).toEqual(usable);
      });
    } else if (group.type === 'RotationApply') {
      test.each(group.tests)('$tcId $result: $comment', ({ state, step, nowMs, after, result }) => {
        const attempt = (): RotationState => apply(group.policy, parseRotationState(state), step, nowMs);
        if (result === 'invalid') expect(attempt).toThrow(expect.objectContaining({ code: 'rotation_step_refused' }) as UsageError);
        else expect(attempt()).toEqual(after);
      });
    } else {
      test.each(group.tests)('$tcId $result: $comment', ({ state, result }) => {
        if (result === 'valid') expect(parseRotationState(state)).toEqual(state);
        else {
          const refusal = expect.objectContaining({ name: 'RejectedError', code: 'rotation_state_invalid' }) as RejectedError;
          expect(() => parseRotationState(state)).toThrow(refusal);
        }
      });
    }
  }
});

describe('a rotation', () => {
  test('goes from nothing to a second version, one action at a time, and says when', () => {
    let state = rotationStart();
    const log: string[] = [];
    let nowMs = T;
    for (let i = 0; i < 12; i += 1) {
      const { due, nextMs } = decide(base, state, nowMs);
      for (const { action, version, reason } of due) {
        log.push(`${(nowMs - T) / DAY}d ${action} ${version} ${reason}`);
        const step = ({ create: 'created', verify: 'verified', activate: 'activated', retire: 'retired', destroy: 'destroyed' } as const)[action];
        state = apply(base, state, { step, version }, nowMs);
      }
      if (due.length === 0) nowMs = nextMs!;
    }
    expect(log).toEqual([
      '0d create 1 initial',
      '0d verify 1 created',
      '0d activate 1 verified',
      '30d create 2 interval',
      '30d verify 2 created',
      '30d activate 2 verified',
      '31d retire 1 overlap_ended',
      '38d destroy 1 retention_ended',
    ]);
    expect(usableVersions(state, nowMs)).toEqual([2]);
  });

  test('replaces a compromised version without overlap, at once', () => {
    const asked = apply(base, first, { step: 'requested', version: 1, event: 'compromised' }, T + 5);
    expect(decide(base, asked, T + 5).due).toEqual([{ action: 'create', version: 2, reason: 'event' }]);
    const replaced = run(base, asked, T + 6, ...made(2));
    expect(usableVersions(replaced, T + 6)).toEqual([2]);
    expect(decide(base, replaced, T + 6).due).toEqual([{ action: 'retire', version: 1, reason: 'overlap_ended' }]);
  });

  test('asked for twenty times with the same version in mind happens once', () => {
    const ask: RotationStep = { step: 'requested', version: 1, event: 'manual' };
    let state = first;
    for (let i = 0; i < 20; i += 1) state = apply(base, state, ask, T + i);
    state = run(base, state, T + 30, ...made(2));
    for (let i = 0; i < 20; i += 1) expect(apply(base, state, ask, T + 40 + i)).toBe(state);
    expect(decide(base, state, T + 60).due).toEqual([]);
  });

  test('keeps the old version where the new one fails, and waits before it tries again, unless someone asks', () => {
    const asked = apply(base, first, { step: 'requested', version: 1, event: 'manual' }, T);
    const failed = run(base, asked, T + 9, { step: 'begun', version: 2 }, { step: 'created', version: 2 }, { step: 'failed', version: 2 });
    expect(usableVersions(failed, T + 9)).toEqual([1]);
    expect(decide(base, failed, T + 9)).toEqual({ due: [], nextMs: T + 9 + base.retryAfterMs });
    expect(decide(base, failed, T + 9 + base.retryAfterMs).due).toEqual([{ action: 'create', version: 3, reason: 'event' }]);
    const insisted = apply(base, failed, { step: 'requested', version: 1, event: 'manual' }, T + 10);
    expect(decide(base, insisted, T + 10).due).toEqual([{ action: 'create', version: 3, reason: 'event' }]);
    // What failed may exist somewhere: it is destroyed as others are.
    expect(decide(base, failed, T + 9 + 7 * DAY).due).toContainEqual({ action: 'destroy', version: 2, reason: 'retention_ended' });
  });

  test('ends the overlap of a version at its maximum age', () => {
    const policy = { ...base, intervalMs: null, maxAgeMs: 10 * DAY };
    const state = run(policy, rotationStart(), T, ...made(1));
    expect(decide(policy, state, T)).toEqual({ due: [], nextMs: T + 9 * DAY });
    const late = run(policy, state, T + 9.5 * DAY, ...made(2));
    expect(usableVersions(late, T + 10 * DAY - 1)).toEqual([2, 1]);
    expect(usableVersions(late, T + 10 * DAY)).toEqual([2]);
    const tooLate = run(policy, state, T + 11 * DAY, ...made(2));
    expect(usableVersions(tooLate, T + 11 * DAY)).toEqual([2]);
  });

  test('is due after so many uses, however often they are reported', () => {
    const policy = { ...base, maxUses: 1000 };
    let state = apply(policy, first, { step: 'used', version: 1, uses: 999 }, T + 1);
    expect(decide(policy, state, T + 1).due).toEqual([]);
    state = apply(policy, state, { step: 'used', version: 1, uses: 1000 }, T + 2);
    expect(apply(policy, state, { step: 'used', version: 1, uses: 1000 }, T + 3)).toBe(state);
    expect(apply(policy, state, { step: 'used', version: 1, uses: 7 }, T + 3)).toBe(state);
    expect(decide(policy, state, T + 3).due).toEqual([{ action: 'create', version: 2, reason: 'max_uses' }]);
    state = run(policy, state, T + 4, ...made(2));
    expect(state.uses).toBe(0);
    expect(apply(policy, state, { step: 'used', version: 1, uses: 5000 }, T + 5)).toBe(state);
  });

  test('ignores what the policy does not name', () => {
    expect(apply(base, first, { step: 'requested', version: 1, event: 'full_moon' }, T)).toBe(first);
  });

  test('keeps the shortest of the overlaps asked for', () => {
    const ask = (state: RotationState, event: string): RotationState => apply(base, state, { step: 'requested', version: 1, event }, T);
    for (const state of [ask(ask(first, 'manual'), 'compromised'), ask(ask(first, 'compromised'), 'manual')]) {
      expect(state.request?.event).toBe('compromised');
    }
  });
});

describe('refuses', () => {
  const refusedStep = expect.objectContaining({ name: 'UsageError', code: 'rotation_step_refused' }) as UsageError;
  const two = run(base, first, T + DAY, ...made(2));
  test.each<[string, RotationState, RotationStep]>([
    ['to skip verification', run(base, first, T, { step: 'created', version: 2 }), { step: 'activated', version: 2 }],
    ['to verify what is not created', run(base, first, T, { step: 'begun', version: 2 }), { step: 'verified', version: 2 }],
    ['a version out of turn', first, { step: 'begun', version: 3 }],
    ['a second version in the making', run(base, first, T, { step: 'begun', version: 2 }), { step: 'begun', version: 3 }],
    ['to activate what is not there', first, { step: 'activated', version: 2 }],
    ['version 0', first, { step: 'begun', version: 0 }],
    ['half a version', first, { step: 'retired', version: 0.5 }],
    ['to retire the active one', first, { step: 'retired', version: 1 }],
    ['to destroy the active one', first, { step: 'destroyed', version: 1 }],
    ['to give up the active one', first, { step: 'failed', version: 1 }],
    ['to give up one that was in use', two, { step: 'failed', version: 1 }],
    ['to destroy one that is in overlap', two, { step: 'destroyed', version: 1 }],
    ['to retire one in the making', run(base, first, T, { step: 'begun', version: 2 }), { step: 'retired', version: 2 }],
    ['to activate what failed', run(base, first, T, { step: 'begun', version: 2 }, { step: 'failed', version: 2 }), { step: 'activated', version: 2 }],
    ['a request to replace one in the making', run(base, first, T, { step: 'begun', version: 2 }), { step: 'requested', version: 2, event: 'manual' }],
  ])('%s', (_, state, step) => {
    expect(() => apply(base, state, step, T + 2 * DAY)).toThrow(refusedStep);
  });

  test.each<[string, Partial<RotationPolicy>]>([
    ['no interval at all', { intervalMs: 0 }],
    ['a negative overlap', { overlapMs: -1 }],
    ['more than a hundred years', { overlapMs: 3_155_760_000_001 }],
    ['a fraction', { retryAfterMs: 0.5 }],
    ['NaN', { destroyAfterMs: Number.NaN }],
    ['a maximum age that leaves no time beside the overlap', { maxAgeMs: DAY, overlapMs: DAY }],
    ['zero uses', { maxUses: 0 }],
    ['a nameless event', { events: [{ event: '', overlapMs: 0 }] }],
    ['an event twice', { events: [{ event: 'a', overlapMs: 0 }, { event: 'a', overlapMs: 1 }] }],
    ['a missing member', { intervalMs: undefined as unknown as null }],
  ])('a policy with %s', (_, change) => {
    const bad = { ...base, ...change };
    const usage = expect.objectContaining({ name: 'UsageError', code: 'invalid_option' }) as UsageError;
    expect(() => decide(bad, first, T)).toThrow(usage);
    expect(() => apply(bad, first, { step: 'begun', version: 2 }, T)).toThrow(usage);
  });

  test.each([Number.NaN, -1, 0.5, Infinity, 253_402_300_800_000])('the time %s', (nowMs) => {
    const usage = expect.objectContaining({ code: 'invalid_option' }) as UsageError;
    expect(() => decide(base, first, nowMs)).toThrow(usage);
    expect(() => apply(base, first, { step: 'begun', version: 2 }, nowMs)).toThrow(usage);
    expect(() => usableVersions(first, nowMs)).toThrow(usage);
  });

  test('uses and events that are none', () => {
    const usage = expect.objectContaining({ code: 'invalid_option' }) as UsageError;
    expect(() => apply(base, first, { step: 'used', version: 1, uses: -1 }, T)).toThrow(usage);
    expect(() => apply(base, first, { step: 'requested', version: 1, event: 'No Name' }, T)).toThrow(usage);
  });
});

// What a caller does with an action, in the steps it would record; the last one may be a failure.
const STEPS: Record<DueAction['action'], RotationStep['step'][][]> = {
  create: [['begun', 'created'], ['begun'], ['created'], ['begun', 'failed']],
  verify: [['verified'], ['verified'], ['verified'], ['failed']],
  activate: [['activated'], ['activated'], ['activated'], ['failed']],
  retire: [['retired']],
  destroy: [['destroyed']],
};

const span = fc.oneof(fc.integer({ min: 0, max: 20 }), fc.integer({ min: 0, max: 10_000 }));
const policies: fc.Arbitrary<RotationPolicy> = fc
  .record({
    intervalMs: fc.option(span.map((ms) => ms + 1)),
    maxAge: fc.option(span.map((ms) => ms + 1)),
    maxUses: fc.option(fc.integer({ min: 1, max: 5 })),
    events: fc.constantFrom([], [{ event: 'manual', overlapMs: 50 }], [{ event: 'manual', overlapMs: 50 }, { event: 'compromised', overlapMs: 0 }]),
    overlapMs: span,
    destroyAfterMs: fc.option(span),
    retryAfterMs: span,
  })
  .map(({ maxAge, ...rest }) => ({ ...rest, maxAgeMs: maxAge === null ? null : maxAge + rest.overlapMs }));

// One thing that happens: the clock moves (back as well), something is asked for or used, a due action is carried out, or any step at all is recorded.
const happenings = fc.array(
  fc.oneof(
    fc.record({ kind: fc.constant('clock' as const), byMs: fc.integer({ min: -5000, max: 15_000 }) }),
    fc.record({ kind: fc.constant('next' as const) }),
    fc.record({ kind: fc.constant('do' as const), which: fc.nat(1), how: fc.nat(3) }),
    fc.record({ kind: fc.constant('do' as const), which: fc.nat(3), how: fc.nat(3) }),
    fc.record({
      kind: fc.constant('any' as const),
      step: fc.constantFrom('begun', 'created', 'verified', 'failed', 'activated', 'retired', 'destroyed', 'used', 'requested'),
      version: fc.integer({ min: 0, max: 8 }),
      uses: fc.nat(6),
      event: fc.constantFrom('manual', 'compromised'),
    }),
  ),
  { minLength: 20, maxLength: 60, size: 'max' },
);
type Happening = (typeof happenings extends fc.Arbitrary<infer T> ? T : never)[number];

interface Moment {
  readonly nowMs: number;
  readonly before: RotationState;
  readonly step: RotationStep;
  readonly after: RotationState;
}

/** Lets everything happen in turn, and hands each step that was recorded to `look`. */
function live(policy: RotationPolicy, story: readonly Happening[], look: (moment: Moment) => void): RotationState {
  let state = rotationStart();
  let nowMs = 20_000;
  const record = (step: RotationStep): void => {
    let after: RotationState;
    try {
      after = apply(policy, state, step, nowMs);
    } catch (error) {
      expect(error).toMatchObject({ name: 'UsageError', code: 'rotation_step_refused' });
      return;
    }
    look({ nowMs, before: state, step, after });
    state = after;
  };
  for (const happening of story) {
    if (happening.kind === 'clock') nowMs = Math.max(0, nowMs + happening.byMs);
    else if (happening.kind === 'next') nowMs = decide(policy, state, nowMs).nextMs ?? nowMs;
    else if (happening.kind === 'any') record(happening as unknown as RotationStep);
    else {
      const { due } = decide(policy, state, nowMs);
      const action = due[happening.which % Math.max(1, due.length)];
      if (action === undefined) continue;
      const ways = STEPS[action.action];
      for (const step of ways[happening.how % ways.length]!) record({ step, version: action.version } as RotationStep);
    }
  }
  return state;
}

const RUNS = { numRuns: 400 };
const storyOf = fc.tuple(policies, happenings);

describe('whatever happens', () => {
  test('one version is active once one was, never two, and it is usable', () => {
    let activations = 0;
    let refusedOrDone = 0;
    fc.assert(
      fc.property(storyOf, ([policy, story]) => {
        live(policy, story, ({ before, after, nowMs, step }) => {
          const actives = after.versions.filter((version) => version.state === 'active');
          const wasActive = before.versions.some((version) => version.state === 'active');
          expect(actives.length).toBe(wasActive || step.step === 'activated' ? 1 : 0);
          if (step.step === 'activated' && before !== after) activations += 1;
          if (before === after) refusedOrDone += 1;
          for (const at of [0, nowMs, nowMs + 1_000_000]) {
            expect(usableVersions(after, at)[0]).toBe(actives[0]?.version);
          }
          expect(after.versions.filter((version) => version.activatedAtMs === null && version.retiredAtMs === null).length).toBeLessThanOrEqual(1);
        });
      }),
      RUNS,
    );
    // The stories are worth something: rotations do complete in them, and steps do come twice.
    expect(activations).toBeGreaterThan(200);
    expect(refusedOrDone).toBeGreaterThan(200);
  });

  test('every state is valid, and is its own canonical JSON', () => {
    fc.assert(
      fc.property(storyOf, ([policy, story]) => {
        live(policy, story, ({ after }) => {
          const stored = utf8(canonicalJson(after as unknown as JsonValue));
          expect(parseRotationState(parseCanonicalJson(stored))).toEqual(after);
        });
      }),
      RUNS,
    );
  });

  test('versions only go forward, keep their numbers, and skip no step into use', () => {
    const order = ['creating', 'created', 'verified', 'active', 'overlap', 'retired', 'destroyed'];
    fc.assert(
      fc.property(storyOf, ([policy, story]) => {
        live(policy, story, ({ before, after, step }) => {
          expect(after.lastVersion - before.lastVersion).toBe(after.versions.length - before.versions.length);
          for (const { version, state } of before.versions) {
            const now = stateOf(after, version)!;
            expect(order.indexOf(now)).toBeGreaterThanOrEqual(order.indexOf(state));
            if (now === 'active' && state !== 'active') expect([state, step.step]).toEqual(['verified', 'activated']);
          }
        });
      }),
      RUNS,
    );
  });

  test('a step recorded twice is recorded once, at any later or earlier time', () => {
    fc.assert(
      fc.property(storyOf, fc.integer({ min: -30_000, max: 30_000 }), ([policy, story], byMs) => {
        live(policy, story, ({ nowMs, step, after }) => {
          expect(apply(policy, after, step, Math.max(0, nowMs + byMs))).toBe(after);
        });
      }),
      RUNS,
    );
  });

  test('a step of long ago changes nothing, or is refused', () => {
    fc.assert(
      fc.property(storyOf, ([policy, story]) => {
        const steps: RotationStep[] = [];
        const end = live(policy, story, ({ step }) => void (step.step === 'requested' || step.step === 'used' || steps.push(step)));
        for (const step of steps) {
          try {
            expect(apply(policy, end, step, 50_000)).toBe(end);
          } catch (error) {
            expect(error).toMatchObject({ code: 'rotation_step_refused' });
          }
        }
      }),
      RUNS,
    );
  });

  test('a crash before or after any step: who resumes from what was stored comes to the same end', () => {
    fc.assert(
      fc.property(policies, fc.array(fc.nat(3), { minLength: 10, maxLength: 40, size: 'max' }), fc.infiniteStream(fc.boolean()), (policy, ways, crashes) => {
        // One caller never crashes; the other loses its memory around each step, and may or may not have stored it.
        function work(crash: () => boolean): RotationState {
          let state = rotationStart();
          let nowMs = 1000;
          for (const way of ways) {
            const { due, nextMs } = decide(policy, state, nowMs);
            const [action] = due;
            if (action === undefined) nowMs = nextMs ?? nowMs;
            else {
              const steps = STEPS[action.action];
              for (const step of steps[way % steps.length]!) {
                const recorded = { step, version: action.version } as RotationStep;
                const stored = JSON.stringify(apply(policy, state, recorded, nowMs));
                state = parseRotationState(JSON.parse(stored));
                // The answer of the store was lost: it does not know, and records it again.
                if (crash()) state = apply(policy, state, recorded, nowMs);
              }
            }
          }
          return state;
        }
        expect(work(() => crashes.next().value)).toEqual(work(() => false));
      }),
      RUNS,
    );
  });

  test('whoever only ever does what is due comes to rest, with one version in use', () => {
    fc.assert(
      fc.property(policies, happenings, (policy, story) => {
        let state = live(policy, story, () => undefined);
        const nowMs = 60_000;
        let left = 100;
        for (let { due } = decide(policy, state, nowMs); due.length > 0; { due } = decide(policy, state, nowMs)) {
          expect((left -= 1)).toBeGreaterThan(0);
          const [{ action, version }] = due as [DueAction];
          const [steps] = STEPS[action] as [RotationStep['step'][]];
          for (const step of steps) state = apply(policy, state, { step, version } as RotationStep, nowMs);
        }
        expect(usableVersions(state, nowMs).length).toBeGreaterThanOrEqual(state.retryAtMs === null ? 1 : 0);
      }),
      RUNS,
    );
  });

  test('the next moment is exact: nothing changes before it, and something does at it', () => {
    let exact = 0;
    fc.assert(
      fc.property(storyOf, fc.integer({ min: 0, max: 60_000 }), fc.double({ min: 0, max: 1, noNaN: true }), ([policy, story], nowMs, part) => {
        const state = live(policy, story, () => undefined);
        const { due, nextMs } = decide(policy, state, nowMs);
        if (nextMs === null) {
          expect(decide(policy, state, nowMs + 1_000_000_000)).toEqual({ due, nextMs });
          return;
        }
        exact += 1;
        expect(nextMs).toBeGreaterThan(nowMs);
        for (const at of [nextMs - 1, nowMs + Math.floor((nextMs - 1 - nowMs) * part)]) expect(decide(policy, state, at)).toEqual({ due, nextMs });
        expect(decide(policy, state, nextMs).due.length).toBeGreaterThan(due.length);
      }),
      { numRuns: 2000 },
    );
    expect(exact).toBeGreaterThan(500);
  });

  test('what is due stays due as time goes on, and until it is done', () => {
    fc.assert(
      fc.property(storyOf, fc.nat(60_000), fc.nat(60_000), ([policy, story], one, other) => {
        const state = live(policy, story, () => undefined);
        const [earlier, later] = [Math.min(one, other), Math.max(one, other)];
        expect(decide(policy, state, later).due).toEqual(expect.arrayContaining([...decide(policy, state, earlier).due]));
      }),
      RUNS,
    );
  });

  test('a clock that steps back takes nothing back and brings nothing forward', () => {
    fc.assert(
      fc.property(storyOf, fc.nat(20_000), ([policy, story], backMs) => {
        live(policy, story, ({ nowMs, after, step, before }) => {
          // What is due and usable just after a step is so for a clock that has stepped back, up to what the step itself made old.
          const back = Math.max(0, nowMs - backMs);
          const seen = decide(policy, after, back).due;
          expect(decide(policy, after, nowMs).due).toEqual(expect.arrayContaining([...seen]));
          expect(usableVersions(after, back)).toEqual(expect.arrayContaining(usableVersions(after, nowMs)));
          // An overlap that begins while the clock is behind lasts from the last moment that is on record.
          if (step.step !== 'activated' || before === after) return;
          const stamps = before.versions.flatMap((one) => [one.createdAtMs, one.activatedAtMs ?? 0, one.retiredAtMs ?? 0]);
          const activated = after.versions.find((one) => one.version === step.version)!;
          expect(activated.activatedAtMs).toBeGreaterThanOrEqual(Math.max(...stamps));
        });
      }),
      RUNS,
    );
  });
});
