/**
 * Hears of changed devices by asking every half second, and knows for how long it has heard nothing. It keeps no device itself and
 * decides nothing about one.
 *
 * @see docs/decisions/0018-revocation-everywhere.md
 */
import { UnavailableError, UsageError } from '@keyguard/core/errors';
import type { ChangedDevices, DeviceChanges, MaybePromise } from '@keyguard/core/seams';
import { TIMED_OUT, within } from './deadline.ts';
import { elapsedMs, present, type Moment } from './elapsed.ts';

const SEAM = 'device_changes';
// How long a caller waits for the answer under way, when what was heard has become too old: after a pause of the process one poll
// puts everything right, and in an outage nobody shall hang.
const PATIENCE_MS = 250;
// Hints and impatient callers make no more than this of polls.
const POLLS_APART_MS = 20;

/** How often is asked, and for how long an answer is good. */
export interface DeviceWatchOptions {
  /** How often it asks, in milliseconds: 10 to half of `maxStaleMs`, default 500. */
  readonly pollEveryMs?: number;
  /** For how long what was heard is good, counted from when the last answered poll began: 20 to 1,000, default 1,000. */
  readonly maxStaleMs?: number;
  /** Told of every poll that failed, was late, or whose news a listener did not take. For the log; MUST NOT throw. */
  readonly onFailure?: (error: unknown) => void;
}

/** Whoever keeps something of devices. */
export interface DeviceChangeListener {
  /**
   * These devices have changed, or any may have. MUST have forgotten what it keeps of them when it returns. If it throws, the same
   * is told again.
   */
  onChanged(deviceIds: readonly string[] | 'reset'): void;
  /** A poll was answered, and all listeners have been told of everything that was acknowledged before it began. */
  onCaughtUp?(): void;
}

/** What is known of changes, and for how long nothing was. */
export interface DeviceWatch {
  /** Milliseconds. */
  readonly maxStaleMs: number;
  /**
   * Returns at once, or resolves, when every listener has been told of every change that was acknowledged `maxStaleMs` before.
   * @throws UnavailableError seam `device_changes`, after half a second at most
   */
  caughtUp(): MaybePromise<void>;
  /** How old the last poll is that was answered, from its beginning; `Infinity` before the first. */
  silentForMs(): number;
  /** Tells all listeners at once of a change that this process has just made. Call it when the change is durable, before it is acknowledged. */
  note(deviceId: string): void;
  /** Listeners are told in the order in which they came. Answers with how to end it. */
  listen(listener: DeviceChangeListener): () => void;
  /** Asks no more: what is kept by its listeners is refused `maxStaleMs` later. */
  stop(): void;
}

/**
 * Asks `changes` from now on, in the background, without keeping the process alive.
 * @throws UsageError `invalid_option`
 */
export function watchDeviceChanges(changes: DeviceChanges, options: DeviceWatchOptions = {}): DeviceWatch {
  const { pollEveryMs = 500, maxStaleMs = 1000, onFailure = (): void => {} } = options;
  if (typeof changes?.since !== 'function') throw new UsageError('invalid_option', 'changes must be DeviceChanges.');
  if (!Number.isInteger(maxStaleMs) || maxStaleMs < 20 || maxStaleMs > 1000) {
    throw new UsageError('invalid_option', 'maxStaleMs must be an integer from 20 to 1,000.');
  }
  if (!Number.isInteger(pollEveryMs) || pollEveryMs < 10 || pollEveryMs > maxStaleMs / 2) {
    throw new UsageError('invalid_option', 'pollEveryMs must be an integer from 10 to half of maxStaleMs.');
  }

  const listeners = new Set<DeviceChangeListener>();
  let cursor: string | null = null;
  // Everything that was acknowledged before this moment has been told.
  let heard: Moment | null = null;
  let polling: Promise<boolean> | null = null;
  let pollBegan: Moment | null = null;
  let lastFailed = false;
  let isHinted = false;
  let isStopped = false;
  let timer: NodeJS.Timeout | undefined;

  const silentForMs = (): number => (heard === null ? Infinity : elapsedMs(heard));

  function tell(deviceIds: readonly string[] | 'reset'): void {
    let failure: { readonly error: unknown } | null = null;
    for (const listener of listeners) {
      try {
        listener.onChanged(deviceIds);
      } catch (error) {
        failure ??= { error };
      }
    }
    if (failure !== null) throw failure.error;
  }

  async function ask(): Promise<void> {
    // Before the question is put: what is acknowledged while it is under way may be in the answer or not.
    const began = present();
    pollBegan = began;
    const answer = await within(maxStaleMs, Promise.resolve(changes.since(cursor)), (error) =>
      error === TIMED_OUT ? new UnavailableError(SEAM, `The ${SEAM} did not answer within ${maxStaleMs} ms.`) : failed(error),
    );
    if (isStopped) return;
    demandAnswer(answer);
    if (answer.deviceIds === 'reset' || answer.deviceIds.length > 0) tell(answer.deviceIds);
    cursor = answer.cursor;
    heard = began;
  }

  function tellCaughtUp(): void {
    for (const listener of listeners) {
      try {
        listener.onCaughtUp?.();
      } catch (error) {
        onFailure(error);
      }
    }
  }

  /** Whether it was answered, and everyone told. */
  async function poll(): Promise<boolean> {
    isHinted = false;
    try {
      await ask();
      lastFailed = false;
      if (!isStopped) tellCaughtUp();
      return true;
    } catch (error) {
      lastFailed = true;
      if (!isStopped) onFailure(error);
      return false;
    } finally {
      polling = null;
      pollWithin(pollEveryMs);
      if (isHinted) pollSoon();
    }
  }

  /** `ms` after the last poll began. */
  function pollWithin(ms: number): void {
    if (isStopped) return;
    clearTimeout(timer);
    const waitMs = pollBegan === null ? 0 : Math.max(0, ms - elapsedMs(pollBegan));
    timer = setTimeout(() => {
      polling = poll();
    }, waitMs);
    timer.unref();
  }

  function pollSoon(): void {
    if (polling === null) pollWithin(POLLS_APART_MS);
    else isHinted = true;
  }

  async function catchUp(): Promise<void> {
    // An outage that is known is told at once, and tried again by the clock and not by every caller.
    if (isStopped || (lastFailed && polling === null)) throw silent();
    // A poll in which the process stood still is too old when it is answered: one more then.
    for (let pollsLeft = 2; pollsLeft > 0; pollsLeft -= 1) {
      if (polling === null) {
        clearTimeout(timer);
        polling = poll();
      }
      const isAnswered = await within(PATIENCE_MS, polling, silent);
      if (silentForMs() <= maxStaleMs) return;
      if (!isAnswered) break;
    }
    throw silent();
  }

  const unhint = changes.onHint?.(pollSoon);
  pollWithin(0);

  return {
    maxStaleMs,
    caughtUp: (): MaybePromise<void> => (silentForMs() <= maxStaleMs ? undefined : catchUp()),
    silentForMs,
    note(deviceId: string): void {
      try {
        tell([deviceId]);
      } catch (error) {
        // The change is made all the same; the next poll tells it again.
        onFailure(error);
      }
    },
    listen(listener: DeviceChangeListener): () => void {
      listeners.add(listener);
      return () => void listeners.delete(listener);
    },
    stop(): void {
      isStopped = true;
      clearTimeout(timer);
      unhint?.();
    },
  };
}

function failed(cause: unknown): UnavailableError {
  return new UnavailableError(SEAM, `The ${SEAM} failed.`, { cause });
}

function silent(): UnavailableError {
  return new UnavailableError(SEAM, 'For too long nothing has been heard of changed devices.', { retryAfterMs: 1000 });
}

function demandAnswer(answer: ChangedDevices): void {
  const { cursor, deviceIds } = answer ?? {};
  const isList = Array.isArray(deviceIds) && deviceIds.every((id) => typeof id === 'string');
  if (typeof cursor !== 'string' || (deviceIds !== 'reset' && !isList)) {
    throw new UnavailableError(SEAM, `The ${SEAM} gave no answer.`);
  }
}
