/**
 * How long ago something was, by two clocks of which the one that saw more time pass counts. The monotonic one does not step, and stands
 * still while the machine sleeps or is moved; the wall clock goes on, and may be set back. So neither makes anything younger.
 */

export interface Moment {
  readonly monotonicMs: number;
  readonly wallMs: number;
}

export function present(): Moment {
  return { monotonicMs: performance.now(), wallMs: Date.now() };
}

/** Milliseconds from `moment` until `now`, never too few. */
export function elapsedMs(moment: Moment, now: Moment = present()): number {
  return Math.max(now.monotonicMs - moment.monotonicMs, now.wallMs - moment.wallMs);
}
